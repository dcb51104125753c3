"""Look at a set and change nothing."""
