"""Choosing what to merge by measuring: which models, which coefficients, whether a straight path joins them."""
