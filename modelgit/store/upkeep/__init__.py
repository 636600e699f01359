"""Upkeep of a store: what lies where, checking, repairing, letting go of what nobody needs, storing it better."""
