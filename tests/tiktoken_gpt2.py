"""tiktoken's own GPT-2, made from the packaged merges without a download: the reference."""

import json
import os
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from unittest import mock

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from prep.tokenizer.gpt2 import END_OF_TEXT, VOCAB_SIZE, build_gpt2_json


@cache
def make_vocab() -> str:
    """The file encoder.json that tiktoken expects, from our tokenizer.json."""
    return json.dumps(json.loads(build_gpt2_json())["model"]["vocab"])


def make_encoding() -> tiktoken.Encoding:
    """Made by tiktoken from the merges; it checks itself that our vocabulary is what they say."""
    # No cache of tiktoken's, so none of another day.
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, TIKTOKEN_CACHE_DIR=""),
    ):
        encoder = Path(folder) / "encoder.json"
        encoder.write_text(make_vocab())
        ranks = data_gym_to_mergeable_bpe_ranks(
            str(files("prep") / "gpt2" / "vocab.bpe"), str(encoder)
        )
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": END_OF_TEXT},
        explicit_n_vocab=VOCAB_SIZE,
    )
