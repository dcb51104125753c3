"""How source files are read: bytes on disk become batches of documents. New formats go here, and
nothing that knows where files come from, or about tokens.
"""
