"""`velocity convert`: a checkpoint of an older release as today's, or one with a longer context."""
