"""Finding the default tap: a forward pass is recorded, and walked back from the outputs to the output layers."""
