"""Files as values: safetensors headers, manifests, dtypes. Standard library only, no I/O beyond reading a header."""
