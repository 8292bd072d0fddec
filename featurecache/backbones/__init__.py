"""Pretrained networks as frozen feature extractors: registry, providers, weights, taps and runtimes."""
