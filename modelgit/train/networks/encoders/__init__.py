"""Encoders of texts: how they are built from the files of a version, and how texts become tokens."""
