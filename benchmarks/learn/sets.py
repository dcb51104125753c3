"""The two sets of a comparison: what is trained on, and what the losses are of.

Both are made by `velocity prep` in WORK, unless they are there. The tokenizer is GPT-2's, cut off
after its first merges: with all of its 50,257 ids, the head would be most of a small model.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from prep.quickstart import run_command
from prep.tokenizer.gpt2 import END_OF_TEXT_TOKEN, VOCAB_SIZE, build_gpt2_json
from shards.disk.durable import write_file
from shards.disk.layout import MANIFEST, TOKENIZER

TRAIN, HELD_OUT = "train", "held-out"
NUM_BYTES = 256


def truncate_gpt2(vocab_size: int) -> str:
    """GPT-2's tokenizer.json with so many ids: the bytes, the first merges, <|endoftext|>."""
    whole = json.loads(build_gpt2_json())
    num_merges = vocab_size - NUM_BYTES - 1
    vocab = {token: i for token, i in whole["model"]["vocab"].items() if i < vocab_size - 1}
    whole["model"]["vocab"] = vocab | {END_OF_TEXT_TOKEN: vocab_size - 1}
    whole["model"]["merges"] = whole["model"]["merges"][:num_merges]
    whole["added_tokens"][0]["id"] = vocab_size - 1
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def make_sets(
    work: Path, inputs: Sequence[Path], held_out: Path | None, column: str | None, vocab_size: int
) -> None:
    """Make the sets that are not there; ValueError if one is missing and there is no text."""
    tokenizer: list[str | Path] = []
    if vocab_size != VOCAB_SIZE:
        folder = work / "tokenizer"
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / TOKENIZER, truncate_gpt2(vocab_size))
        tokenizer = ["--tokenizer", folder]
    for name, paths in ((TRAIN, inputs), (HELD_OUT, [held_out] if held_out else [])):
        if (work / name / MANIFEST).exists():
            continue
        if not paths:
            raise ValueError(
                f"{work / name}: there is no set; give --input and --held-out, or make both with "
                "velocity prep"
            )
        sources = [word for path in paths for word in ("--input", path)]
        columns = ["--text-column", column] if column else []
        run_command(
            *("velocity", "prep", *sources, *columns, *tokenizer, "--out", work / name),
            *("--validation-fraction", "0"),
        )
