"""Recipes: what a pipeline file says, checked whole before anything runs."""
