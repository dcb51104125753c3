"""A tokenizer of your own: trained on text, and measured on text that it never saw."""
