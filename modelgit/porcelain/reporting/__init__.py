"""The state of a repository's models in numbers: descent, scores, forgetting, and how versions compare on data."""
