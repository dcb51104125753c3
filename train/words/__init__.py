"""Settings as people write them, and what they may be: words, YAML, bounds. Loads no torch."""
