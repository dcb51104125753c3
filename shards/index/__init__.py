"""Which documents hold a text: a suffix array over a set's tokens, made and searched."""
