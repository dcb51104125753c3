"""Where a run stands: saved so that going on is exact, and found again."""
