"""What git calls: the filter for weight files, how they differ, how they merge, what goes before a push."""
