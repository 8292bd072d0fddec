"""Multilayer perceptrons, many of them trained side by side.

`estimator` is what users see. `bank` holds the parameters of models of one shape, stacked, and steps all of them at
once; `training` reads the rows in mini-batches, hands each batch to all banks, and lets models leave that are done.
"""
