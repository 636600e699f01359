"""Verbs on task vectors: cherry-pick adds one, revert subtracts it, rebase replays fine-tunes on another version."""
