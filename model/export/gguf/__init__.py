"""GGUF, the file of llama.cpp: its weights by their names there, its tokenizer, and its runtime."""
