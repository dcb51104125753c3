"""Which documents of a set a condition on their columns chooses, and the stream of their tokens."""
