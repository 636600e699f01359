"""Fine-tuning as a commit: one path for recipes, pipelines, Python, and for doing it again to check."""
