"""--drop-contained: documents that hold a passage of given test texts are dropped.

A passage is a run of `words` words, 13 by default (as in Brown et al. 2020, appendix C), read as
shards/near/shingles.py reads them: case, punctuation and white space make no difference. A test
text with fewer words, but MIN_WORDS at least, is looked for as a whole.

The hashes of all passages are collected once, into a file in .prep/ that every worker reads, and
looks up with a table of 16 MiB for each length of passage. Two
passages with one 64-bit hash are not told apart: a million passages meet one of 10^12 others by
chance once in 20 times.
"""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.policy import Policy
from prep.readers.documents import Documents, Piece, find_offsets
from prep.readers.formats import read_documents
from shards.disk.durable import commit, hash_file, naming, sync_file
from shards.disk.folders import make_folder
from shards.disk.json_files import hash_canonical
from shards.disk.layout import contained_path, temporary_folder
from shards.format import Int64
from shards.near.shingles import Bytes, Hashes, hash_words, join_words
from shards.screen.lines import Say

MIN_WORDS = 8
# A passage is looked up only if its hash's first bits are those of one that is looked for.
FIRST_BITS = 24
ENTRY = np.dtype([("words", "<u8"), ("hash", "<u8")])


def pin_contained(policy: Policy) -> Policy:
    """The policy with the sha256 of each file of --drop-contained, which is what decides tokens.

    One that has them is returned as it is.
    """
    if not policy.drop_contained or policy.contained_sha256:
        return policy
    hashes = []
    for name in dict.fromkeys(policy.drop_contained):
        if not Path(name).is_file():
            found = "is a folder" if Path(name).is_dir() else "no such file"
            raise ValueError(
                f"--drop-contained {name}: {found}; expected a file of test texts: .txt, JSON "
                "lines or .parquet"
            )
        hashes.append(hash_file(Path(name)))
    return replace(policy, contained_sha256=tuple(sorted(set(hashes))))


def find_column(policy: Policy) -> str:
    """The column of the test texts in their files; by default that of the sources' texts."""
    return policy.contained_column or policy.text_column


def place_passages(policy: Policy, folder: Path) -> Path:
    """Where the passages of a pinned policy are, in the folder of a set."""
    settings = [policy.contained_sha256, policy.contained_words, find_column(policy)]
    return contained_path(folder, hash_canonical(settings)[:16])


def write_passages(policy: Policy, folder: Path, say: Say) -> None:
    """Collect the passages that a pinned policy names, unless it is done already."""
    if not policy.contained_sha256 or place_passages(policy, folder).exists():
        return
    found = [np.empty(0, ENTRY)]
    for name in dict.fromkeys(policy.drop_contained):
        num_texts, num_short = 0, 0
        for documents in read_test_texts(name, find_column(policy)):
            passages, counts = find_passages(documents.texts, policy.contained_words)
            found.append(passages)
            num_texts += len(counts)
            num_short += int((counts < min(MIN_WORDS, policy.contained_words)).sum())
        short = f"; {num_short:,} have too few words to be looked for" if num_short else ""
        say(f"--drop-contained {name}: {num_texts:,} test texts{short}")
    passages = np.unique(np.concatenate(found))
    if not len(passages):
        raise ValueError(
            f"--drop-contained {', '.join(policy.drop_contained)}: no text has "
            f"{min(MIN_WORDS, policy.contained_words)} words or more; look there, and at "
            "--contained-column"
        )
    own = temporary_folder(folder) / f"contained-{secrets.token_hex(8)}"
    make_folder(own.parent)
    with naming(own), open(own, "wb") as file:
        file.write(passages.tobytes())
        sync_file(file)
    commit(own, place_passages(policy, folder))


def read_test_texts(name: str, column: str) -> Iterator[Documents]:
    """The texts of a test set that are not empty; in a .txt, blank lines stand between them."""
    try:
        for documents in read_documents(Piece(name, name), column, blank_line_documents=True):
            has_text = documents.num_bytes > 0
            yield documents.filter(has_text)
    except ValueError as error:
        message = str(error).replace("--text-column", "--contained-column")
        raise ValueError(message) from error


def find_passages(texts: pa.Array, num_words: int) -> tuple[npt.NDArray[np.void], Int64]:
    """The passages of texts that have enough words, and how many words each text has."""
    words, counts = hash_words(*view_texts(texts))
    bounds = np.concatenate([[0], np.cumsum(counts)])
    sizes = np.where(counts < min(MIN_WORDS, num_words), 0, np.minimum(counts, num_words))
    found = [np.empty(0, ENTRY)]
    for size in np.unique(sizes[sizes > 0]).tolist():
        chosen = np.flatnonzero(sizes == size)
        here = np.concatenate([words[bounds[i] : bounds[i + 1]] for i in chosen])
        passages, _ = join_words(here, counts[chosen], size)
        entries = np.empty(len(passages), ENTRY)
        entries["words"], entries["hash"] = size, passages
        found.append(entries)
    return np.concatenate(found), counts


def view_texts(texts: pa.Array) -> tuple[Bytes, Int64]:
    """The bytes of texts (large_string, without nulls), and where each begins and the last ends."""
    return np.frombuffer(texts.buffers()[2] or b"", np.uint8), find_offsets(texts)


@lru_cache(maxsize=1)
def load_passages(path: Path) -> "Passages":
    """The passages that a file has, one file's per process: units need the same ones."""
    return Passages(path)


class Passages:
    """The passages that are looked for, from the file that `write_passages` made."""

    def __init__(self, path: Path) -> None:
        entries = np.memmap(path, ENTRY, "r")
        sizes = np.unique(entries["words"]).tolist()
        # Of each length in words: the hashes, ascending, and the first bits that they have.
        self.hashes: dict[int, Hashes] = {
            int(size): np.ascontiguousarray(entries["hash"][entries["words"] == size])
            for size in sizes
        }
        self.first_bits = {}
        for size, hashes in self.hashes.items():
            bits = np.zeros(1 << FIRST_BITS, np.bool_)
            bits[hashes >> np.uint64(64 - FIRST_BITS)] = True
            self.first_bits[size] = bits

    def mark(self, texts: pa.Array) -> npt.NDArray[np.bool_]:
        """Which texts (large_string, without nulls) hold one of the passages."""
        words, counts = hash_words(*view_texts(texts))
        found = np.zeros(len(texts), np.bool_)
        for size, hashes in self.hashes.items():
            passages, per_text = join_words(words, counts, size)
            likely = np.flatnonzero(self.first_bits[size][passages >> np.uint64(64 - FIRST_BITS)])
            places = np.searchsorted(hashes, passages[likely])
            places[places == len(hashes)] = 0
            likely = likely[hashes[places] == passages[likely]]
            found[np.searchsorted(np.cumsum(per_text), likely, side="right")] = True
        return found
