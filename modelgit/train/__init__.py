"""Models, data, and the loop that fine-tunes. Sees tensors and models, never repositories."""
