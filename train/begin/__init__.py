"""A new run that begins with a folder's model: its shape, its ids, and its weights to all ranks."""
