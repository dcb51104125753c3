"""Texts to the tokens and rows of a set: which documents stay, and what each becomes. New filters
go here, and nothing that knows about units, folders or machines.
"""
