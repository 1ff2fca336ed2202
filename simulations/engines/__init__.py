"""Engines: the links that run silos in this process or in a pool of workers."""
