"""The sets of a mixture as a user names them, and their weights as shares of a block of samples.

Loads nothing heavy: the settings of a run hold entries.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from shards.screen.url import refuse_url
from shards.where.condition import parse_condition

# The most samples of a block, and so the finest difference of weights.
MAX_BLOCK = 100_000
NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)
FORMS = (
    "a mapping of folders to weights, such as {web/: 0.7, code/: 0.3}, or a list of entries, such "
    "as [{shards: web/, weight: 0.7}, {shards: code/, weight: 0.3}]"
)


@dataclass(frozen=True)
class Entry:
    """A set of a mixture: its folder, and its weight, which counts beside the others'."""

    shards: str
    weight: float
    # As data.where; None = all documents.
    where: str | None = None

    def __post_init__(self) -> None:
        if not self.shards.strip():
            raise ValueError("names an empty folder; expected that of a set")
        refuse_url(self.shards)
        if self.where is not None:
            parse_condition(self.where, f"the where of {self.shards}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"has the weight {self.weight} for {self.shards}; expected more than 0 (a set that "
                "is not to be read is left out)"
            )


def read_entries(value: Any) -> tuple[Entry, ...]:
    """The entries of a mapping or list of plain data; ValueError, in words, if it is neither.

    >>> read_entries({"web/": "0.7", "code/": 0.3})
    (Entry(shards='web/', weight=0.7, where=None), Entry(shards='code/', weight=0.3, where=None))
    """
    if not isinstance(value, dict | list | tuple) or not value:
        raise ValueError(f"is {shorten(value)}; expected {FORMS}")
    if isinstance(value, dict):
        value = [{"shards": folder, "weight": weight} for folder, weight in value.items()]
    entries = tuple(map(_read_entry, value))
    folders = [(entry.shards.rstrip("/"), entry.where) for entry in entries]
    for folder, where in folders:
        if folders.count((folder, where)) > 1:
            raise ValueError(f"names {folder} twice; give it one weight")
    compute_shares([entry.weight for entry in entries])  # Refuses a weight that is no share.
    return entries


def _read_entry(value: Any) -> Entry:
    if not isinstance(value, dict) or not isinstance(value.get("shards"), str):
        raise ValueError(f"has the entry {shorten(value)}; expected {FORMS}")
    unknown = sorted(map(str, value.keys() - Entry.__dataclass_fields__.keys()))
    if unknown:
        names = ", ".join(Entry.__dataclass_fields__)
        raise ValueError(f"has an entry with {unknown[0]}; expected some of {names}")
    weight = value.get("weight")
    if isinstance(weight, str) and NUMBER.fullmatch(weight.strip()):
        weight = float(weight)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        lacks = "no weight" if weight is None else f"the weight {shorten(weight)}"
        raise ValueError(
            f"has {lacks} for {value['shards']}; expected a number, such as 0.7 (in "
            "a mapping, a space comes after the colon)"
        )
    where = value.get("where")
    if not isinstance(where, str | None):
        raise ValueError(f"has the where {shorten(where)} for {value['shards']}; expected text")
    return Entry(value["shards"], float(weight), where)


def spell_entries(entries: Sequence[Entry]) -> str:
    """The entries as the settings take them, on the command line too.

    >>> spell_entries(read_entries({"web/": 0.7, "code/": 0.3}))
    '{"web/": 0.7, "code/": 0.3}'
    """
    if all(entry.where is None for entry in entries):
        return json.dumps({entry.shards: entry.weight for entry in entries})
    plain = [asdict(entry) for entry in entries]
    return json.dumps([{k: v for k, v in entry.items() if v is not None} for entry in plain])


def compute_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """How many samples of a block each set has: as its weight says, to the digit, where that fits.

    A block has at most MAX_BLOCK samples. Where it would need more, the remainders decide who gets
    the last ones (Hamilton's method), and a share is off by less than one sample in MAX_BLOCK.
    Raises ValueError for a weight that comes to no sample in a block.

    >>> compute_shares([0.7, 0.3]), compute_shares([2, 1, 1]), compute_shares([5])
    ((7, 3), (2, 1, 1), (1,))
    """
    # As decimal numbers: 0.7 is seven tenths.
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= MAX_BLOCK:
        return tuple(number // divisor for number in whole)
    quotas = [Fraction(number * MAX_BLOCK, sum(whole)) for number in whole]
    shares = [math.floor(quota) for quota in quotas]
    rests = sorted(range(len(quotas)), key=lambda i: (shares[i] - quotas[i], i))
    for place in rests[: MAX_BLOCK - sum(shares)]:
        shares[place] += 1
    if 0 in shares:
        raise ValueError(
            f"has the weight {weights[shares.index(0)]}, which is less than one sample in "
            f"{MAX_BLOCK:,} beside the others; expected more, or leave the set out"
        )
    divisor = math.gcd(*shares)
    return tuple(share // divisor for share in shares)


def shorten(value: Any) -> str:
    """A value as it was given, cut where it is long."""
    return repr(value)[:80]
