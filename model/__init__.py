"""The model: architecture, loss, checkpoints as Hugging Face folders, and sampling from them."""
