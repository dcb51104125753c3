"""Chat templates, run apart and bounded, and the tokens that they make of messages."""
