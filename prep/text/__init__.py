"""Text to tokens: which documents stay, and which ids their text gets. New filters,
encoders and tokenizers go here, and nothing that knows about units, folders or machines.
"""
