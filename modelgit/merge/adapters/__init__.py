"""LoRA adapters: pairs of factors whose product is the change of a matrix, merged by their products."""
