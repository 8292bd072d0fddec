"""Heads that are trained by gradient steps.

`training` is the loop: batches, schedule, early stopping. Two kinds of trainer fill it in. Models of many settings and
folds are stacked (`stacked`) and trained side by side (`stacked_training`): `mlp` and
`attentive`. Layers of any kind (`trainable`) are trained one after the other on a data set that is read by the batch
(`datasets`, `layer_training`, `checkpoints`): tails and new layers (`finetuned`). What estimators share is in
`estimators`, `options` and `outputs`.
"""
