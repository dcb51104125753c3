"""Checkpoint folders: what makes one complete, and what makes it a Hugging Face model."""
