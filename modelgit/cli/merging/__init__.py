"""Merging at the command line: the command, and its options in groups."""
