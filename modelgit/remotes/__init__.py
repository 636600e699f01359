"""Object stores elsewhere, and the transfer of missing objects."""
