"""Paths of linear heads: all regularisations and all folds of one head fitted as one.

``objective`` is what is minimised, a loss of margins in blocks of rows; ``minimiser`` minimises many problems side by
side and has a ``history`` of each; ``path`` leads it from strong to weak regularisation, in the ``row_space`` where
rows are few; ``normal_equations`` are the closed form of ridge regression; ``classifier`` is what all are once they
are fitted; ``linear`` is the estimator that the heads build on.
"""
