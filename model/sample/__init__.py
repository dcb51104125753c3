"""`velocity sample`: reads its prompts, or asks for them; shows its texts, or tells them as JSON."""
