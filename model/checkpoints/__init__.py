"""A checkpoint folder: what makes it whole, and what makes it Hugging Face's."""
