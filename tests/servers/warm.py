"""What takes long to import and load, for the process that tests/servers/forked.py forks from.

Nothing of the Hub is here: its libraries read their settings when they are imported.
"""

import gc

import pandas
import pyarrow.dataset
import torch._dynamo

import cli
import prep.append
import prep.gather
import prep.run
import prep.run_part
import train.__main__
import train.loop
from prep.tokenizer.encoder import build_encoder
from prep.tokenizer.exact import choose_encoder
from prep.tokenizer.gpt2 import build_gpt2_json

__all__ = ["cli", "pandas", "prep", "pyarrow", "torch", "train"]

build_encoder(build_gpt2_json(), choose_encoder(None, build_gpt2_json()).encoder)

# A fork looks for garbage among what is its own, and copies nothing by looking.
gc.collect()
gc.freeze()
