"""Texts to the rows and tokens of a set: which documents stay, and what each becomes. New filters go
here, and nothing that knows about units, folders or machines.
"""
