"""Documents: where they come from and how their files are read. A new format or place of documents
goes here, and nothing that knows of tokens.
"""
