"""Upkeep of a repository: checking and repairing it, letting go of what nobody needs, telling what uses the bytes."""
