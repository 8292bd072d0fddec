"""Heads that are trained by gradient steps, many of them side by side.

`mlp` and `attentive` are what users see, `probe` what they have in common. A bank (`bank`; `perceptrons`, `attention`)
holds the parameters of models of one shape, stacked, and takes a step of all of them at once; `training` reads the rows
in mini-batches, hands each batch to all banks, and lets settings leave that are done.

`finetuned` trains layers of any kind instead, one after the other: `tuner` is what its estimators have in common,
`trainable` what is trained, `descent` the steps, which go on from `checkpoints`. Both lose by `losses`.
"""
