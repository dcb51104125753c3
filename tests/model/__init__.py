"""The model against transformers, checkpoints, and what is written from them."""
