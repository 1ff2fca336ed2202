"""Benchmarks: each one command, run by `make bench`; ratios within one run, never bare seconds."""
