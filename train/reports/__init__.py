"""What a run reports: its metrics, how they are computed, and where they are written."""
