"""Git: history, work tree, lineage."""
