"""What people and programs see: results, progress, errors."""
