"""Networks that can be trained and scored: built from a name and, where needed, the version's own files."""
