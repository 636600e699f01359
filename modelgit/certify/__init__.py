"""Gates over scores."""
