"""Text to tokens: which documents stay, and which ids their text gets. A new filter, encoder or
tokenizer goes here, and nothing that knows of units, folders or machines.
"""
