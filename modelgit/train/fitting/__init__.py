"""Fitting weights to data: objectives, optimisers, averages along the run, the loop, and going on after a kill."""
