"""A run's checkpoints: saved so that resuming is exact, and found again."""
