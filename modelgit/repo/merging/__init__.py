"""Merges as git leaves them in a work tree: what is under way, what is in conflict."""
