"""The folder of a finished tokenizer: there whole, or not at all."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from prep.tokenizer.choose import TOKENIZER_CONFIG
from prep.vocabulary.request import TrainRequest
from shards.disk.durable import hash_file, naming, sync_folder, write_file
from shards.disk.folders import make_folder, remove
from shards.disk.json_files import Json, load_json
from shards.disk.layout import TOKENIZER

REPORT = "report.json"


def is_finished(out: Path, made_of: Json) -> bool:
    """Whether `out` holds the finished tokenizer that is made of these settings and sources.

    False if it is free. ValueError if something else is there: nothing is overwritten.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return False
    if (out / REPORT).is_file() and (out / TOKENIZER).is_file():
        report = load_json(out / REPORT)
        found = {key: report.get(key) for key in made_of}
        if found == made_of and report.get("tokenizer_sha256") == hash_file(out / TOKENIZER):
            return True
    raise ValueError(
        f"{out}: is there, and is not the tokenizer of these options and this text; nothing is "
        "overwritten, so choose another --out"
    )


def expect_writable(out: Path) -> None:
    """Raise OSError if `out` cannot be made, before the work begins; those above it are made."""
    make_temporary(out).rmdir()


def make_temporary(out: Path) -> Path:
    """A new folder beside `out`, which it can be renamed to."""
    make_folder(out.parent)
    with naming(out):
        return Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))


def write_folder(out: Path, request: TrainRequest, tokenizer_json: str, report: Json) -> None:
    """Write tokenizer.json, tokenizer_config.json and report.json, durably."""
    files = {
        TOKENIZER: tokenizer_json,
        TOKENIZER_CONFIG: dump(make_config(request)),
        REPORT: dump(report),
    }
    temporary = make_temporary(out)
    try:
        for name, content in files.items():
            write_file(temporary / name, content)
        temporary.chmod(0o777 & ~read_umask())
        with naming(out):
            os.rename(temporary, out)
    finally:
        remove(temporary, ignore_errors=True)
    sync_folder(out.parent)


def read_umask() -> int:
    """The permissions that new files are made without; temporary folders have none to share."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_config(request: TrainRequest) -> Json:
    """tokenizer_config.json: which token ends a document, for transformers and for prep."""
    more = request.special_tokens[1:]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": request.end_of_document,
        **({"additional_special_tokens": [*more]} if more else {}),
        "clean_up_tokenization_spaces": False,
    }


def dump(value: Mapping[str, object]) -> str:
    """JSON that people read too."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
