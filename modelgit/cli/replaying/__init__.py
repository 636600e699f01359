"""Commands on task vectors, and those that ask the history of tensors."""
