"""One file per algorithm (server half and silo half), tasks, the wire format and the experiment's schema."""
