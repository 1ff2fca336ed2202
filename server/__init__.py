"""The round loop: cohorts, releases, checkpoints, the run's store."""
