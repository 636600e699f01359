"""Trials: models measured before they are merged, to choose among them, to find coefficients, to look for barriers."""
