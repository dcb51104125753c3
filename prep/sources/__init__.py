"""Documents: where they come from and how their files are read. New formats and places of
documents go here, and nothing that knows about tokens.
"""
