"""Pipelines: recipes carried out, by worker processes, resumably; and the table they end in."""
