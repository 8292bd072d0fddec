"""Layers trained from cached activations: the rest of a pretrained network, or somebody's own in its place."""
