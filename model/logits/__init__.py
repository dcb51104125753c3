"""The head's logits, of which only a chunk of tokens is ever in memory, and their gradient."""
