"""Permutations of a network's units that leave its function as it is: which there are, which one lines up two models."""
