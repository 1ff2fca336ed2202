"""Experiments as a person runs them: engines, data, partitions, reports, the command line."""
