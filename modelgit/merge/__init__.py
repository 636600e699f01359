"""Merge methods and the engine that streams them. Sees tensors, never repositories."""
