"""A run's privacy in plain words, shared by the command line and the report."""
