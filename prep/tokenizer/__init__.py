"""The tokenizer of a set: which one it is, how it is loaded, and what encodes with it fastest. New
encoders and tokenizers go here.
"""
