"""Data that arrives with or inside packages, and its way into silos."""
