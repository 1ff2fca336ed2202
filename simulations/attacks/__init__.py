"""Malicious silos: who they are, what they do to their rows and updates, and how far they get."""
