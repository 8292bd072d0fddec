"""A backbone and a head as one network, and the files that it can be written to."""
