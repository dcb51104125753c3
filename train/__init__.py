"""The training run: settings, loop, optimizer, checkpoints' training state, reports.

`torchrun --nproc_per_node 4 -m train` begins in __main__.py and reads like a paragraph in loop.py.
"""
