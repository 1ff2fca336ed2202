"""The live view of a run: what its folder says, drawn in a terminal; nothing is locked, and nothing is written."""
