"""Families of linear heads: all strengths of regularisation and all folds fitted as one, on shared matrix products.

``rows`` hands out features in blocks, from memory or from a cache that is larger than that; ``losses`` says what is
minimised; ``solver`` minimises many problems side by side; ``path`` leads it from strong to weak regularisation;
``ridge`` has closed forms; ``classifier`` is what all are once they are fitted; ``estimators`` are what people use.
"""
