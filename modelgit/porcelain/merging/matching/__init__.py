"""Models made to match before they are merged, or set right afterwards: their units, their tokens, their factors."""
