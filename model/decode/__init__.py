"""Text from a model: choose one token per step, decode it, decide when to stop."""
