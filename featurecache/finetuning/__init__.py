"""Layers trained from cached activations, or from images: the rest of a pretrained network, all of it, or new ones."""
