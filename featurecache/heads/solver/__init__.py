"""Paths of linear heads: all regularisations and all folds of one head fitted as one.

``objective`` is what is minimised, a loss of margins in blocks of rows; ``path`` minimises many problems side by side,
from strong to weak regularisation, by what is known of the ``curvature`` of each, and in the ``row_space`` where rows
are few; ``path_search`` chooses among its solutions; ``normal_equations`` are the closed form of ridge regression;
``classifier`` is what all are once they are fitted; ``linear`` is the estimator that the heads build on.
"""
