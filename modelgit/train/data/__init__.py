"""Data sets: what the trainer reads, whatever it is kept in, and how it is split."""
