"""The report: the command, and its page in words and pictures."""
