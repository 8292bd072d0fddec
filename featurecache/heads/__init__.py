"""Heads: scikit-learn's own classifiers, registered as they are, and how to fit, calibrate, save and load them."""
