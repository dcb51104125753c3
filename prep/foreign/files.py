"""Token files made by other tools: which kind each is, and whether it is whole.

nanogpt    ids and nothing else, as wide as the tokenizer needs; the end token after each document
llmc       256 int32 (magic, version, number of ids, zeros), ids of uint16 or uint32; the end token
           before each document, and a document continues in the next file when one is full
megatron   ids in a .bin, and an .idx that says where sequences and documents are
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from prep.files.door import check_name, check_readable
from prep.tokenizer.identity import SetTokenizer
from shards.exchange.megatron import Index, read_index
from shards.widths import token_dtype

FORMATS = ("auto", "nanogpt", "llmc", "megatron")
INSTEAD = "prepare the text itself with: velocity prep"

IF_BY_CHANCE = "if it has no header, and its ids happen to begin so, say --format nanogpt"

LLMC_HEADER = np.dtype("<i4")
LLMC_HEADER_BYTES = 256 * LLMC_HEADER.itemsize
# By the bytes of an id: llm.c's magic, its version, and whose ids it writes so.
LLMC_KINDS = {2: (20240520, 1, "GPT-2"), 4: (20240801, 7, "Llama 3")}
EVALUATION_MAGIC = 20240522
LLMC_MAGICS = (EVALUATION_MAGIC, *(magic for magic, _, _ in LLMC_KINDS.values()))


@dataclass(frozen=True)
class ForeignFile:
    """A file of ids that was found whole, by its header and size."""

    path: Path
    # What the sidecar calls it.
    name: str
    split: str
    format: str
    num_tokens: int
    dtype: np.dtype[Any]
    # Where its ids begin, in bytes.
    offset: int = 0
    # Only for Megatron's files.
    index: Index | None = None

    @property
    def index_path(self) -> Path:
        """The path of Megatron's index."""
        return self.path.with_suffix(".idx")

    @property
    def index_name(self) -> str:
        """What the manifest calls Megatron's index."""
        return PurePosixPath(self.name).with_suffix(".idx").as_posix()


def find_files(
    train: Sequence[str],
    validation: Sequence[str],
    format: str,
    add_end_of_text: bool,
    tokenizer: SetTokenizer,
) -> list[ForeignFile]:
    """The files named, in order, each checked to hold ids such as the tokenizer's.

    A file's name is its path below the folder that all of them share, so the same data gives the
    same dataset_id wherever it is. Raises ValueError naming the file and what is wrong with it.
    """
    if format not in FORMATS:
        raise ValueError(f"--format is {format!r}; expected one of {', '.join(FORMATS)}")
    named = [(find_path(entry), "train") for entry in train]
    named += [(find_path(entry), "validation") for entry in validation]
    seen: set[Path] = set()
    for path, _ in named:
        if path.resolve() in seen:
            raise ValueError(f"{path}: is named twice; name each file once")
        seen.add(path.resolve())
    if not named:
        raise ValueError("no file to import; name at least one, or one with --validation")
    root = os.path.commonpath([path.absolute().parent for path, _ in named])
    names = [path.absolute().relative_to(root).as_posix() for path, _ in named]
    for name in names:
        check_name(name)
    return [
        check_file(path, name, split, format, add_end_of_text, tokenizer)
        for (path, split), name in zip(named, names, strict=True)
    ]


def find_path(entry: str) -> Path:
    """The file of ids that is meant: itself, by its .idx, or by Megatron's PREFIX of both."""
    path = Path(entry)
    if path.suffix == ".idx":
        path = path.with_suffix(".bin")
    if not path.exists() and path.with_name(f"{path.name}.idx").is_file():
        path = path.with_name(f"{path.name}.bin")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name the files in it")
    if not os.path.lexists(path):
        raise ValueError(f"{path}: no such file")
    check_readable(path)
    return path


def check_file(
    path: Path,
    name: str,
    split: str,
    format: str,
    add_end_of_text: bool,
    tokenizer: SetTokenizer,
) -> ForeignFile:
    """A file of the given kind, or for `auto` of the kind it seems to be; ValueError if damaged."""
    with open(path, "rb") as file:
        head = file.read(LLMC_HEADER_BYTES)
    if format == "auto":
        format = guess_format(path, head)
    if format == "megatron":
        return check_megatron(path, name, split)
    if format == "llmc":
        return check_llmc(path, name, split, head, tokenizer)
    return check_nanogpt(path, name, split, add_end_of_text, tokenizer)


def guess_format(path: Path, head: bytes) -> str:
    """The kind of a file, by what is beside it and how it begins."""
    if head.startswith(b"\x93NUMPY"):
        raise ValueError(
            f"{path}: is a NumPy .npy file; expected ids of nanoGPT, llm.c or Megatron"
        )
    if os.path.lexists(path.with_suffix(".idx")):
        return "megatron"
    # As ids of uint32, these magics are beyond any tokenizer's. As two of uint16, the first is
    # above 55,000: GPT-2 has fewer, and files of larger tokenizers are named --format nanogpt.
    return "llmc" if read_magic(head) in LLMC_MAGICS else "nanogpt"


def read_magic(head: bytes) -> int:
    """The number that an llm.c file begins with; -1 if a file is too short for one."""
    size = LLMC_HEADER.itemsize
    return int.from_bytes(head[:size], "little", signed=True) if len(head) >= size else -1


def check_nanogpt(
    path: Path, name: str, split: str, add_end_of_text: bool, tokenizer: SetTokenizer
) -> ForeignFile:
    """A file without a header: whole ids, the last of them the end of a document."""
    size = path.stat().st_size
    dtype = token_dtype(tokenizer.token_bytes)
    if not size or size % dtype.itemsize:
        each = {2: "two", 4: "four"}[dtype.itemsize]
        raise ValueError(
            f"{path}: has {size:,} bytes; expected {dtype.name} ids, {each} bytes each: it is cut "
            "short, or not a nanoGPT file"
        )
    with open(path, "rb") as file:
        file.seek(-dtype.itemsize, os.SEEK_END)
        last = int.from_bytes(file.read(), "little")
    if last != tokenizer.end_of_text and not add_end_of_text:
        raise ValueError(
            f"{path}: ends in the id {last}; expected {tokenizer.end_of_text}, the end-of-document "
            "token: it is cut short, or from another tokenizer; if it is whole, add one with "
            "--add-end-of-text"
        )
    return ForeignFile(path, name, split, "nanogpt", size // dtype.itemsize, dtype)


def check_llmc(
    path: Path, name: str, split: str, head: bytes, tokenizer: SetTokenizer
) -> ForeignFile:
    """A file with llm.c's header, and of the size that the header says."""
    magic = read_magic(head)
    wanted, known_version, whose = LLMC_KINDS[tokenizer.token_bytes]
    if magic != wanted and magic in LLMC_MAGICS:
        others = {kind[0]: f"ids of the {kind[2]} tokenizer" for kind in LLMC_KINDS.values()}
        raise ValueError(
            f"{path}: holds llm.c's {others.get(magic, 'evaluation examples')} (magic {magic}); "
            f"expected {whose}'s ids ({wanted}), so {INSTEAD}; {IF_BY_CHANCE}"
        )
    if magic != wanted or len(head) < LLMC_HEADER_BYTES:
        raise ValueError(
            f"{path}: begins with the number {magic} and has a header of {len(head):,} bytes; "
            f"expected {wanted} and {LLMC_HEADER_BYTES:,}, as llm.c writes them"
        )
    version, num_tokens = np.frombuffer(head, LLMC_HEADER)[1:3].tolist()
    if version != known_version:
        raise ValueError(
            f"{path}: is of llm.c version {version}; expected {known_version}; {IF_BY_CHANCE}"
        )
    dtype = token_dtype(tokenizer.token_bytes)
    expected = LLMC_HEADER_BYTES + num_tokens * dtype.itemsize
    size = path.stat().st_size
    if size != expected or num_tokens < 1:
        raise ValueError(
            f"{path}: has {size:,} bytes; expected {expected:,} for the {num_tokens:,} ids of its "
            "header: it is cut short or damaged"
        )
    return ForeignFile(path, name, split, "llmc", num_tokens, dtype, LLMC_HEADER_BYTES)


def check_megatron(path: Path, name: str, split: str) -> ForeignFile:
    """A .bin with its .idx, which must match."""
    index_path = path.with_suffix(".idx")
    if not os.path.lexists(index_path):
        raise ValueError(f"{path}: has no {index_path.name} beside it, as Megatron's files do")
    check_readable(index_path)
    index = read_index(index_path, path)
    return ForeignFile(path, name, split, "megatron", index.num_tokens, index.dtype, index=index)


def is_next(path: Path, following: Path) -> bool:
    """Whether the last numbers in two names are a number and the next one.

    >>> is_next(Path("fineweb_train_000009.bin"), Path("fineweb_train_000010.bin"))
    True
    >>> is_next(Path("fineweb_train_000001.bin"), Path("fineweb_train_000003.bin"))
    False
    """
    before, after = (re.fullmatch(r"(.*?)(\d+)(\D*)", p.name, re.DOTALL) for p in (path, following))
    if before is None or after is None:
        return False
    same = (before[1], before[3]) == (after[1], after[3]) and path.parent == following.parent
    return same and int(after[2]) == int(before[2]) + 1
