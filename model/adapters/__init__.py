"""Adapters: LoRA and DoRA on a model's matrices, in peft's files, and merged into the model."""
