"""One function for each thing a user does; wires the floors together."""
