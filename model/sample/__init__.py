"""`velocity sample`: reads prompts, or asks for them; shows texts, or writes them as JSON."""
