"""The page at / of `velocity serve`, and what only it asks for: where a text comes from."""
