"""Trained heads put to use: kept with the identity of their features, and applied to new inputs."""
