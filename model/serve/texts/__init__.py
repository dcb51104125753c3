"""Texts: what a request asks for is read, written by the batcher, and made into an answer."""
