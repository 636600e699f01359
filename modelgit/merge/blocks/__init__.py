"""What methods do to blocks of a tensor: arithmetic in a pinned order, selection without sorting, random masks."""
