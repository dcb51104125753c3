"""What a run tells: its numbers, computed in pure functions, and where they are written."""
