"""Permutations of units that leave a network's function as it is: which there are, which lines up two models."""
