"""Held-out worlds: runs that are recorded for the confirmatory half, and read once."""
