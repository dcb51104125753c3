"""Training steps: time and memory beside peers, and what a save costs."""
