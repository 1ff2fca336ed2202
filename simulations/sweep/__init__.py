"""Sweeps: the best of a random number of runs, and what choosing it costs (the theorems are in privacy/tuning.py)."""
