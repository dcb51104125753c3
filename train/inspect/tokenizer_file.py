"""A tokenizer.json in a few words, read as JSON: what kind it is, and how many ids it has."""

import json
from pathlib import Path

from shards.disk.json_files import Json
from train.inspect.report import Report

MAX_TOKENIZER_BYTES = 2**26
MAX_SHOWN = 6


def describe_tokenizer(path: Path, report: Report) -> None:
    """Add what a tokenizer.json holds, or that it holds none."""
    num_bytes = path.stat().st_size
    if num_bytes > MAX_TOKENIZER_BYTES:
        report.problems.append(f"{path.name}: {num_bytes:,} bytes, too large for a tokenizer")
        return
    try:
        content: Json = json.loads(path.read_bytes())
        added = [(entry["id"], entry["content"]) for entry in content["added_tokens"]]
        vocabulary = content["model"]["vocab"]
        # Of Unigram it is a list of pieces; ids are their places.
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        num_ids = 1 + max([*ids, *(token for token, _ in added)])
        kind = content["model"].get("type") or "of an unnamed kind"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        report.problems.append(f"{path.name}: not a tokenizer as the tokenizers library saves one")
        return
    report.facts["tokenizer"] = str(kind)
    report.facts["ids"] = f"{num_ids:,}"
    special = [str(token) for _, token in added]
    if special:
        more = ", ..." if len(special) > MAX_SHOWN else ""
        report.facts["special tokens"] = ", ".join(special[:MAX_SHOWN]) + more
