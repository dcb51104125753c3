"""The sets that a run reads, opened: one alone, or several with weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from shards.format import Int64
from shards.mixture.entries import Entry, compute_shares
from shards.mixture.mixture import Mixture, Stage
from shards.mixture.stream import MixedStream
from shards.order import SampleOrder, make_order
from shards.reader import Shards, TokenStream, open_shards
from shards.where.choice import Choice, choose_windows
from shards.where.view import open_view


@dataclass(frozen=True)
class Source:
    """One of the sets of a run: what it reads of it, and in which order.

    Whatever else gives windows of tokens in an order of its own comes in here.
    """

    # What reports call it: the folder's name, or its path where two have that name.
    name: str
    shards: Shards
    # The documents of the train split that it reads, and the order in which it does.
    choice: Choice
    order: SampleOrder

    @property
    def dataset_id(self) -> str:
        """The id of the set's version."""
        return self.shards.manifest.dataset_id

    def stream(self, split: str, checks_first_reads: bool = False) -> TokenStream:
        """What is read of one split, on request compared with its checksums as it is read."""
        if split == "train":
            return open_view(self.shards, split, self.choice, checks_first_reads)
        return self.shards.stream(split, checks_first_reads)


@dataclass(frozen=True)
class Sets:
    """All sets that a run reads from now on, and how many samples of a block each has."""

    sources: tuple[Source, ...]
    shares: tuple[int, ...]

    @property
    def first(self) -> Shards:
        """The set whose tokenizer is used for all of them, since they have the same ids."""
        return self.sources[0].shards

    @property
    def names(self) -> list[str]:
        """What reports call each."""
        return [source.name for source in self.sources]

    @property
    def dataset_ids(self) -> tuple[str, ...]:
        """The ids of all."""
        return tuple(source.dataset_id for source in self.sources)

    @cached_property
    def validation(self) -> "Sets":
        """The sets by their validation splits: of those that are one version, the first has all.

        That is a set which is named several times, as conditions leave its validation split whole.
        """
        shares: dict[str, int] = {}
        for dataset_id, share in zip(self.dataset_ids, self.shares, strict=True):
            shares[dataset_id] = shares.get(dataset_id, 0) + share
        firsts = tuple(self.sources[self.dataset_ids.index(found)] for found in shares)
        return Sets(firsts, tuple(shares.values()))

    def stream(self, checks_first_reads: bool = False) -> MixedStream:
        """The tokens of all train splits, one after another."""
        return MixedStream([source.stream("train", checks_first_reads) for source in self.sources])

    def by_name(self, values: Sequence[float | None]) -> dict[str, float]:
        """The values that there are of several sets, by their names; nothing of one alone."""
        named = dict(zip(self.names, values, strict=True)) if len(self.sources) > 1 else {}
        return {name: value for name, value in named.items() if value is not None}

    def average(self, values: Sequence[float | None]) -> float | None:
        """The mean of one value for each set, by its share; sets without one do not count."""
        known = [(s, v) for s, v in zip(self.shares, values, strict=True) if v is not None]
        if not known:
            return None
        return sum(share * value for share, value in known) / sum(share for share, _ in known)


@dataclass(frozen=True)
class MixedOrder:
    """Where the window of each sample begins in the stream of all sets.

    `numbers` says which set of the mixture each source is; samples of others cannot be read.
    """

    sets: Sets
    mixture: Mixture
    numbers: tuple[int, ...]

    @classmethod
    def begin(cls, sets: Sets) -> "MixedOrder":
        """The order of a new run on these sets."""
        return cls(sets, Mixture((Stage(0, sets.shares),)), tuple(range(len(sets.sources))))

    @property
    def max_seq_length(self) -> int:
        """The tokens that a sample feeds to the model."""
        return self.sets.sources[0].order.max_seq_length

    @property
    def window_tokens(self) -> int:
        """The tokens of a sample's window: one more, but in packed sets, of which all are."""
        return self.sets.sources[0].order.window_tokens

    def starts(self, samples: Int64) -> Int64:
        """Where in the stream of all sets each sample's window begins."""
        starts = np.full(len(samples), -1, np.int64)
        sets, own = self.mixture.locate(samples)
        for source, number, first in zip(
            self.sets.sources, self.numbers, self._firsts, strict=True
        ):
            here = sets == number
            starts[here] = first + source.order.starts(own[here])
        assert starts.min(initial=0) >= 0, "a sample of a set that the run does not read"
        return starts

    def count_samples(self, num_samples: int) -> list[int]:
        """How many of the run's first `num_samples` samples are of each source."""
        counts = self.mixture.count(num_samples).tolist()
        return [counts[number] for number in self.numbers]

    def plan_epochs(self, num_tokens: int) -> dict[str, float]:
        """How often a run of `num_tokens` sees each token of its sets, by their names."""
        length = self.max_seq_length
        counts = self.count_samples(num_tokens // length)
        return {
            source.name: count * length / source.order.num_tokens
            for source, count in zip(self.sets.sources, counts, strict=True)
        }

    @cached_property
    def _firsts(self) -> list[int]:
        """Where each source's train split begins in the stream of all."""
        sizes = [source.order.num_tokens for source in self.sets.sources]
        return [sum(sizes[:place]) for place in range(len(sizes))]


def open_sets(entries: Sequence[Entry], max_seq_length: int, seed: int) -> Sets:
    """The finished sets that the entries name.

    Raises ValueError with one line if one is none, is too short for a window, has other ids than
    the first, or is the set of another entry.
    """
    opened = [open_shards(entry.shards) for entry in entries]
    for place, (entry, shards) in enumerate(zip(entries, opened, strict=True)):
        for other, before in zip(entries[:place], opened, strict=False):
            if other.where == entry.where:
                refuse_same_set(before, shards)
        check_same_ids(opened[0], shards)
    names = name_sets([entry.shards for entry in entries])
    sources = [
        open_source(shards, entry.where, max_seq_length, seed, name=name)
        for name, entry, shards in zip(names, entries, opened, strict=True)
    ]
    for one, two in combinations(sources, 2):
        refuse_same_documents(one, two)
    return Sets(tuple(sources), compute_shares([entry.weight for entry in entries]))


def open_source(
    shards: Shards,
    where: str | None,
    max_seq_length: int,
    seed: int,
    num_tokens: int | None = None,
    name: str = "",
) -> Source:
    """A set as a run reads it: its train split, or the first `num_tokens` of an earlier version.

    Raises ValueError if too little is chosen, and for a condition on a packed set.
    """
    choice = choose_windows(shards, where, max_seq_length, num_tokens)
    try:
        order = make_order(shards.manifest, max_seq_length, seed, choice.num_tokens)
    except ValueError as error:
        raise ValueError(f"{shards.folder}: {error}") from None
    return Source(name, shards, choice, order)


def refuse_same_set(one: Shards, other: Shards) -> None:
    """ValueError if two folders hold one set, in the same version or not."""
    ids = [{*shards.manifest.ancestors, shards.manifest.dataset_id} for shards in (one, other)]
    if one.manifest.dataset_id in ids[1] or other.manifest.dataset_id in ids[0]:
        raise ValueError(
            f"{other.folder}: holds the same set as {one.folder}, or a version of it (dataset_id "
            f"{other.manifest.dataset_id[:12]}); name one of them"
        )


def refuse_same_documents(one: Source, other: Source) -> None:
    """ValueError if two conditions choose the same documents of one set.

    They would be read in the same order, and a run that goes on could not tell them apart.
    """
    conditions = [source.choice.where or "all documents" for source in (one, other)]
    if one.dataset_id == other.dataset_id and one.choice.is_same(other.choice):
        raise ValueError(
            f"{other.shards.folder}: {' and '.join(conditions)} choose the same documents; give "
            "them one weight"
        )


def check_same_ids(first: Shards, other: Shards) -> None:
    """ValueError if the ids of two sets do not mean the same, saying what differs."""
    ours, theirs = first.manifest, other.manifest
    compared: dict[str, tuple[object, object]] = {
        "number of ids": (ours.vocab_size, theirs.vocab_size),
        "end token": (ours.end_of_text, theirs.end_of_text),
        "begin token": (ours.begin_of_text, theirs.begin_of_text),
        "tokenizer": tuple(shards.content["tokenizer"]["sha256"][:12] for shards in (ours, theirs)),
    }
    tests = [shards.content["tokenizer"]["self_test"] for shards in (ours, theirs)]
    if tests[0] == tests[1]:
        del compared["tokenizer"]  # Two files that say the same.
    rows = {"number of tokens in a packed row": (ours.row_tokens, theirs.row_tokens)}
    for what, (one, two) in (compared | rows).items():
        if one != two:
            raise ValueError(
                f"{other.folder}: its {what} is {two}, but that of {first.folder} is {one}; all "
                "sets of a mixture need the same, so prepare one of them anew"
            )


def name_sets(folders: Sequence[str]) -> list[str]:
    """What reports call the sets in these folders, of which one may be named several times.

    >>> name_sets(["data/web/", "code"]), name_sets(["a/web", "b/web", "b/web/"])
    (['web', 'code'], ['a/web', 'b/web', 'b/web-2'])
    """
    last = [Path(folder).name or folder for folder in folders]
    paths = [folder.rstrip("/") for folder in folders]
    names = []
    for place, path in enumerate(paths):
        number = paths[: place + 1].count(path)
        others = {other for other, name in zip(paths, last, strict=True) if name == last[place]}
        names.append((last[place] if len(others) == 1 else path) + f"-{number}" * (number > 1))
    return names
