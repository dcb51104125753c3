"""The processes of a run: which one this is, what they share, and how all of them end."""
