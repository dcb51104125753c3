"""Which step of a run saw which documents; the run may still be running. Needs no torch."""
