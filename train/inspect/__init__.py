"""What a folder is, what is missing in it, and how to use it. Reads no weights; needs no torch."""
