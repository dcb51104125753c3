"""Filters: which documents of a source are dropped before they are encoded, and why.

null, empty                no text
min_chars, max_chars       --min-chars, --max-chars: too few or too many characters
keep_url, drop_url         --keep-url, --drop-url: regular expressions in RE2's syntax
where language=en          --where: any other column of the source

Three other places drop documents: prep/units/work.py and ledger.py those that do not fit into
--max-documents and --max-tokens (prep/units/budget.py), prep/units/cut.py the copies that --dedup
finds (prep/text/copies.py), and prep/foreign/run.py the empty documents of imported token files.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.request import Policy
from prep.sources.documents import Documents

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": pc.not_equal,
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    "=": pc.equal,
    ">": pc.greater,
    "<": pc.less,
}
CONDITION = re.compile(r"\s*([\w.-]+)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*", re.DOTALL)

# Marks the documents of a batch to which a reason applies.
Mark = Callable[[Documents], pa.Array]


@dataclass(frozen=True)
class Condition:
    """One --where: a column, how to compare, and with what."""

    text: str
    column: str
    comparison: str
    value: str

    def fails(self, documents: Documents) -> pa.Array:
        """The documents for which it does not hold; it never holds for null."""
        values = documents.columns[self.column]
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_null(values.type):
            return pa.repeat(True, len(values))
        try:
            if pa.types.is_integer(values.type) and not self.value.lstrip("+-").isdigit():
                values = values.cast(pa.float64(), safe=False)  # score>=0.65, where all are 0 or 1
            wanted = pa.scalar(self.value).cast(values.type)
            return pc.invert(COMPARISONS[self.comparison](values, wanted).fill_null(False))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise ValueError(
                f"--where {self.text!r}: the column {self.column!r} holds {values.type}, which "
                f"cannot be compared with {self.value!r}; give a value of that type"
            ) from None


def parse_condition(text: str) -> Condition:
    """Parse one --where; ValueError if it is not a condition.

    >>> parse_condition("language_score >= 0.65")
    Condition(text='language_score >= 0.65', column='language_score', comparison='>=', value='0.65')
    """
    found = CONDITION.fullmatch(text)
    if found is None:
        raise ValueError(
            f"--where is {text!r}; expected a column, one of {' '.join(COMPARISONS)}, and a value, "
            "such as language=en"
        )
    return Condition(text, *found.groups())


class Filter:
    """The reasons to drop a document, in the order in which they are tried."""

    def __init__(
        self,
        min_chars: int | None = None,
        max_chars: int | None = None,
        keep_url: str | None = None,
        drop_url: str | None = None,
        where: Sequence[str] = (),
    ) -> None:
        conditions = [parse_condition(text) for text in where]
        self.columns = tuple(dict.fromkeys(condition.column for condition in conditions))
        self.marks: dict[str, Mark] = {
            "null": lambda documents: documents.texts.is_null(),
            "empty": lambda documents: pc.equal(pc.binary_length(documents.texts), 0),
        }
        if min_chars is not None:
            self.marks["min_chars"] = lambda d: pc.less(pc.utf8_length(d.texts), min_chars)
        if max_chars is not None:
            self.marks["max_chars"] = lambda d: pc.greater(pc.utf8_length(d.texts), max_chars)
        if keep_url is not None:
            find_kept = search_url("--keep-url", keep_url)
            self.marks["keep_url"] = lambda documents: pc.invert(find_kept(documents))
        if drop_url is not None:
            self.marks["drop_url"] = search_url("--drop-url", drop_url)
        for condition in conditions:
            self.marks[f"where {condition.text}"] = condition.fails

    def choose(self, documents: Documents) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
        """Which documents of a batch to keep, and how many were dropped for each reason.

        A document is counted for the first reason that applies.
        """
        kept = np.ones(len(documents.rows), np.bool_)
        dropped = {}
        for reason, mark in self.marks.items():
            found = mark(documents).fill_null(False).to_numpy(zero_copy_only=False) & kept
            dropped[reason] = int(found.sum())
            kept &= ~found
        return kept, dropped


def make_filter(policy: Policy) -> Filter:
    """The filter of a policy; ValueError for an invalid regular expression or condition."""
    return Filter(
        policy.min_chars, policy.max_chars, policy.keep_url, policy.drop_url, policy.where
    )


def search_url(option: str, pattern: str) -> Mark:
    """Marks the documents whose URL matches the pattern anywhere, never those without a URL."""
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{option} is {pattern!r}; expected a regular expression in RE2's syntax "
            f"({' '.join(str(error).split())})"
        ) from None
    return lambda d: pc.match_substring_regex(d.urls, pattern).fill_null(False)
