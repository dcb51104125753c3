"""`velocity convert`, from its options to its last line."""

from pathlib import Path

from model.convert.longer import describe, lengthen
from model.convert.older import convert
from model.convert.options import Longer


def run_convert(path: Path, out: Path, longer: Longer, tokenizer_json: str) -> str:
    """Convert the checkpoint at `path` into the new folder `out`; what became of it, in words.

    `tokenizer_json` is for the original VelocityLM's. Raises ValueError, in one line, for what
    cannot be converted so.
    """
    if longer.context is not None:
        return describe(*lengthen(path, out, longer))
    convert(path, out, tokenizer_json)
    return "converted"
