"""The engine: what a merge will do, decided first (plan), then done tensor by tensor (execution)."""
