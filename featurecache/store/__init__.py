"""The cache on disk: samples, features, tasks. Imports no torch. The format is described in FORMAT.md."""
