"""Which documents share a row: best-fit decreasing (Ding et al. 2024, arXiv 2404.10830).

T is the tokens of a row. A document of at most T tokens lies whole in one row. A longer one takes
as many rows as T goes into its tokens, and room for the rest, fewer than T, in one more, which it
shares with others: they lie behind it, or before it. So it stays in one piece on disk, and is cut
as few times as can be. What stays free is at the end of a row.

The largest goes first, each to the row with the least space left that it fits into. The rows are
kept by their space, so that each document takes one search in T bits.
"""

from dataclasses import dataclass, field

import numpy as np

from shards.format import Int64

# In the place of a document.
PADDING = -1
# A row has two ends, and so holds the rests of two documents that have more rows.
MAX_RESTS = 2


@dataclass(frozen=True)
class Layout:
    """What lies in rows, from their first token on: documents, by number, or PADDING."""

    numbers: Int64
    num_tokens: Int64


@dataclass
class Row:
    """What shares a row so far: whole documents, and rests of those that have more rows."""

    space: int
    documents: list[int] = field(default_factory=list)
    rests: list[int] = field(default_factory=list)

    def find_first(self) -> int:
        """The first of its documents."""
        return min(self.documents + self.rests)

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more rests."""
        return len(self.rests) == MAX_RESTS


class Spaces:
    """Rows by the space that they have left: of those with the least that is enough, the newest."""

    def __init__(self, row_tokens: int) -> None:
        self.rows: list[list[Row]] = [[] for _ in range(row_tokens + 1)]
        # Bit n is set if there are rows with a space of n.
        self.bits = 0

    def find(self, num_tokens: int) -> int | None:
        """The least space of a row, of at least `num_tokens`; None if there is none."""
        bits = self.bits >> num_tokens
        return num_tokens + (bits & -bits).bit_length() - 1 if bits else None

    def take(self, space: int) -> Row:
        """The newest row with this space, which is no longer here."""
        rows = self.rows[space]
        row = rows.pop()
        if not rows:
            self.bits ^= 1 << space
        return row

    def add(self, row: Row) -> None:
        """Keep a row by the space that it has now."""
        self.rows[row.space].append(row)
        self.bits |= 1 << row.space


def pack(sizes: Int64, row_tokens: int) -> Layout:
    """How documents of these sizes lie in rows of `row_tokens`; rows are in documents' order.

    >>> layout = pack(np.array([3, 9, 4, 2, 5]), 8)
    >>> layout.numbers.tolist(), layout.num_tokens.tolist()
    ([0, 4, 1, 2, 3, -1], [3, 5, 9, 4, 2, 1])
    """
    numbers: list[int] = []
    paddings: list[int] = []
    for row in sorted(fill_rows(sizes, row_tokens), key=Row.find_first):
        # Documents that go on are the first and the last.
        rests = sorted(row.rests)
        numbers += [*rests[:1], *sorted(row.documents), *rests[1:]]
        if row.space:
            numbers.append(PADDING)
            paddings.append(row.space)
    found = np.array(numbers, np.int64)
    num_tokens = sizes[found] if len(sizes) else found
    num_tokens[found == PADDING] = paddings
    return Layout(found, num_tokens)


def fill_rows(sizes: Int64, row_tokens: int) -> list[Row]:
    """The rows that are shared, and those that a document of whole rows fills; in no order."""
    rests = sizes % row_tokens
    full: list[Row] = [Row(0, [number]) for number in np.flatnonzero(rests == 0).tolist()]
    shared: list[Row] = []
    # Rows that take rests, and those that do not.
    spaces = Spaces(row_tokens), Spaces(row_tokens)
    order = np.argsort(-rests, kind="stable")[: len(sizes) - len(full)]
    is_long = sizes > row_tokens
    for number, size, is_rest in zip(
        order.tolist(), rests[order].tolist(), is_long[order].tolist(), strict=True
    ):
        row = take_row(spaces, size, is_rest)
        if row is None:
            row = Row(row_tokens)
            shared.append(row)
        (row.rests if is_rest else row.documents).append(number)
        row.space -= size
        if row.space:
            spaces[row.is_closed].add(row)
    return full + shared


def take_row(spaces: tuple[Spaces, Spaces], size: int, is_rest: bool) -> Row | None:
    """The row that a document, or a rest, of `size` tokens fits into best; None if into none.

    Of two that it fits equally well, a document takes the one that no rest could.
    """
    open_space = spaces[False].find(size)
    closed_space = None if is_rest else spaces[True].find(size)
    if closed_space is not None and (open_space is None or closed_space <= open_space):
        return spaces[True].take(closed_space)
    return None if open_space is None else spaces[False].take(open_space)
