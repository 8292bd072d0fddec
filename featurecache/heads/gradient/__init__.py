"""Heads that are trained by gradient steps, many of them side by side.

`mlp` and `attentive` are what users see, `probe` what they have in common. A bank (`bank`; `perceptrons`, `attention`)
holds the parameters of models of one shape, stacked, and takes a step of all of them at once; `training` reads the rows
in mini-batches, hands each batch to all banks, and lets settings leave that are done.
"""
