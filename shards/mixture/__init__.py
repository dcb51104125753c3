"""Several sets read as one, by weights: which set is sample s, as arithmetic, and its tokens."""
