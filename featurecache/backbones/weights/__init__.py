"""Weights files: read without unpickling, matched with the names of a network, and loaded into it."""
