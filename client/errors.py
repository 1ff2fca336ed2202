"""Errors about data; this module imports nothing slow, so that the command line may load it at once."""


class DataError(ValueError):
    """Data that cannot be used; one line: where, what was found, what to do."""
