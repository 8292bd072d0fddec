"""Families of linear heads: all strengths, all folds and all tasks on the same rows fitted as one.

``objective`` is what is minimised, by one of the ``losses``, in blocks of rows; ``solver`` minimises many problems side
by side and has a ``history`` of each; ``path`` leads it from strong to weak regularisation, in the ``row_space`` where
rows are few; ``ridge`` has closed forms, from ``normal_equations``; ``classifier`` is what all are once they are
fitted; ``estimators`` are what people use.
"""
