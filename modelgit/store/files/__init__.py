"""Whole weight files: into objects and a manifest, and back, byte for byte."""
