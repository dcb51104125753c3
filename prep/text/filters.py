"""Filters: which documents of a source are dropped before they are encoded, and why.

null, empty                no text
no answer, too long        --chat: nothing that is trained on, more tokens than a row has
min_chars, max_chars       --min-chars, --max-chars: too few or too many characters
keep_url, drop_url         --keep-url, --drop-url: regular expressions in RE2's syntax
where language=en          --where: any other column of the source (prep/text/conditions.py)
bad: no number             --keep-column: text that is not what it should be (prep/text/kept.py)
contained                  --drop-contained: passages of test texts (prep/text/contained.py)
bad: not JSON              --on-bad-document skip: what could not be read, or not be compared

Three other places drop documents: prep/units/work.py and ledger.py those that do not fit into
--max-documents and --max-tokens (prep/units/budget.py), prep/copies/cut.py the copies that --dedup
finds (prep/copies), and prep/foreign/run.py the empty documents of imported token files.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.policy import Policy
from prep.readers.documents import BAD, DROPPED, BadDocument, Documents
from prep.text.conditions import parse_condition
from prep.text.contained import Passages, load_passages, place_passages
from prep.text.kept import Kept, parse_kept

# Marks the documents of a batch to which a reason applies.
Mark = Callable[[Documents], pa.Array]


class Choice(NamedTuple):
    """Which documents of a batch are kept, and what became of the others."""

    kept: npt.NDArray[np.bool_]
    dropped: dict[str, int]  # how many for each reason
    bad: dict[int, BadDocument]  # those among them that were bad, by their place in the batch


class Filter:
    """The reasons to drop a document, in the order in which they are tried."""

    def __init__(
        self,
        min_chars: int | None = None,
        max_chars: int | None = None,
        keep_url: str | None = None,
        drop_url: str | None = None,
        where: Sequence[str] = (),
        skips_bad: bool = False,
        passages: Passages | None = None,
        keep_column: tuple[str, ...] = (),
    ) -> None:
        self.passages = passages
        self.conditions = [parse_condition(text) for text in dict.fromkeys(where)]
        self.kept = parse_kept(keep_column)
        names = [condition.column for condition in self.conditions]
        self.columns = tuple(dict.fromkeys([*names, *(entry.name for entry in self.kept)]))
        self.skips_bad = skips_bad
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

    def choose(self, documents: Documents) -> Choice:
        """Which documents of a batch to keep, and how many were dropped for each reason.

        A document is counted for the first reason that applies. BadDocument if one cannot be
        compared as a condition asks, and bad documents are not skipped.
        """
        choice = Choice(np.ones(len(documents.rows), np.bool_), {}, {})
        for place, error in documents.bad.items():
            drop_bad(choice, place, error)
        if DROPPED in documents.columns:
            reasons = documents.columns[DROPPED]
            for reason in sorted(reasons.drop_null().unique().to_pylist()):
                found = pc.equal(reasons, reason).fill_null(False).to_numpy(zero_copy_only=False)
                drop(choice, reason, found)
        for reason, mark in self.marks.items():
            found = mark(documents).fill_null(False).to_numpy(zero_copy_only=False)
            drop(choice, reason, found)
        for condition in self.conditions:
            try:
                judgement = condition.judge(documents.columns[condition.column])
            except ValueError as error:
                raise ValueError(f"{documents.path}: {error}") from None
            for place, why in judgement.misfits.items():
                if choice.kept[place]:
                    misfit = BadDocument(f"{documents.name(place)}: {why}", "not comparable")
                    if not self.skips_bad:
                        raise misfit
                    drop_bad(choice, place, misfit)
            drop(choice, f"where {condition.text}", ~judgement.holds)
        self._drop_misfits(documents, choice)
        if self.passages:
            found = np.zeros(len(documents.rows), np.bool_)
            found[choice.kept] = self.passages.mark(documents.texts.filter(pa.array(choice.kept)))
            drop(choice, "contained", found)
        return choice

    def keep_columns(self, documents: Documents) -> dict[str, pa.Array]:
        """The columns of --keep-column, as the sidecar has them; ValueError for another kind."""
        return {entry.name: self._convert(entry, documents)[0] for entry in self.kept}

    def _drop_misfits(self, documents: Documents, choice: Choice) -> None:
        """Drop documents whose kept columns hold text that is not what it should be."""
        for entry in self.kept:
            for place, why in self._convert(entry, documents)[1].items():
                if choice.kept[place]:
                    misfit = BadDocument(f"{documents.name(place)}: {why}", f"no {entry.kind}")
                    if not self.skips_bad:
                        raise misfit
                    drop_bad(choice, place, misfit)

    def _convert(self, entry: Kept, documents: Documents) -> tuple[pa.Array, dict[int, str]]:
        try:
            return entry.convert(documents.columns[entry.name])
        except ValueError as error:
            raise ValueError(f"{documents.path}: {error}") from None


def drop(choice: Choice, reason: str, found: npt.NDArray[np.bool_]) -> None:
    """Drop those of the documents that are still kept, and count them."""
    choice.dropped[reason] = int((found & choice.kept).sum())
    choice.kept[found] = False


def drop_bad(choice: Choice, place: int, error: BadDocument) -> None:
    """Drop a bad document, and count and keep why."""
    reason = BAD + error.reason
    choice.dropped[reason] = choice.dropped.get(reason, 0) + 1
    choice.kept[place] = False
    choice.bad[place] = error


def make_filter(policy: Policy, folder: Path | None = None) -> Filter:
    """The filter of a policy; ValueError for an invalid regular expression or condition.

    In `folder`, that of the set, are the passages that --drop-contained looks for; without it
    they are not.
    """
    passages = None
    if folder is not None and policy.contained_sha256:
        passages = load_passages(place_passages(policy, folder))
    return Filter(
        policy.min_chars,
        policy.max_chars,
        policy.keep_url,
        policy.drop_url,
        policy.where,
        policy.skips_bad,
        passages,
        policy.keep_column,
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
