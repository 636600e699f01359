"""Merging versions: asked for, prepared from the graph, made, recorded so that it can be recomputed."""
