"""What prep finds in a file, as lists."""

from pathlib import Path
from typing import Any, NamedTuple

from prep.readers.documents import Piece
from prep.readers.formats import read_documents


class Found(NamedTuple):
    """Documents as lists."""

    texts: list[str | None]
    urls: list[str | None]
    rows: list[int]
    repaired: list[bool]
    num_bytes: int


def read(path: Path, column: str = "content", **options: Any) -> Found:
    """All documents of a file as one batch."""
    return join([Piece(str(path), path.name)], column, **options)


def join(pieces: list[Piece], column: str = "content", **options: Any) -> Found:
    """All documents of several pieces as one batch."""
    whole = Found([], [], [], [], 0)
    for piece in pieces:
        for batch in read_documents(piece, column, **options):
            batch.texts.validate(full=True)
            lists = [have + more.tolist() for have, more in zip(whole[:4], batch[:4], strict=True)]
            whole = Found(*lists, whole.num_bytes + int(batch.num_bytes.sum()))
    return whole


def read_skipping(path: Path, **options: Any) -> tuple[list[str | None], dict[int, str]]:
    """The texts of a file whose bad documents are left out, and what is said of each, by row."""
    texts: list[str | None] = []
    bad: dict[int, str] = {}
    for batch in read_documents(Piece(str(path), path.name), "content", skips_bad=True, **options):
        bad |= {int(batch.rows[place]): str(error) for place, error in batch.bad.items()}
        texts += [t for place, t in enumerate(batch.texts.tolist()) if place not in batch.bad]
    return texts, bad
