"""`velocity sample`: its prompts, from files or asked for on a terminal; its texts, shown or as JSON."""
