"""Training: settings, loop, optimizer, the training state in checkpoints, and reports.

`torchrun --nproc_per_node 4 -m train` starts in __main__.py; loop.py is its summary.
"""
