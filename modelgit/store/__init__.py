"""The content-addressed object store: codec, packs, objects, checkpoints in and out, upkeep."""
