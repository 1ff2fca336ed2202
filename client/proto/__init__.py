"""The interface of the silo's daemon, and its compiled code (`make proto`)."""
