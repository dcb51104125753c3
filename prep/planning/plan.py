"""The plan: what will be read, cut into units, fixed before the first document is encoded.

A unit is a source file, a part of a large one, or a few small ones. It becomes shards of its own,
named after its number, so the output is the same whoever does the work and in whatever order.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from prep.planning.sample import choose_sample, parse_fraction
from prep.sources.documents import SUFFIXES, Piece, estimate_text_bytes, split_file
from prep.sources.hub import HubDataset, HubFile
from prep.sources.stamp import Stamp, take_stamp
from prep.text.filters import Filter
from shards.format import Json, hash_canonical

PLAN_SCHEMA_VERSION = 1
# Source bytes of a unit where the user names none: small enough to keep all workers busy and to
# lose little when one dies, large enough that a set has thousands of shards and not millions.
MIN_UNIT_BYTES = 8 << 20
MAX_UNIT_BYTES = 64 << 20
AIMED_UNITS = 1024
# A file is cut only when it is this many units long, so that ordinary files stay whole.
SPLIT_FROM_UNITS = 2


@dataclass(frozen=True)
class Policy:
    """The settings that decide which tokens come out, all of them part of the dataset_id."""

    text_column: str = "content"
    # A .txt is one document, or one a block between blank lines.
    blank_line_documents: bool = False
    # Share of the documents, by a hash of their text, that goes to validation; a decimal number.
    validation_fraction: str = "0.001"
    # A shard is closed before the document that would make it longer than this.
    shard_tokens: int = 1 << 28
    # Stop after so many documents or tokens (<|endoftext|> included), in plan order.
    max_documents: int | None = None
    max_tokens: int | None = None
    # Source bytes a unit; None = chosen from the total.
    unit_bytes: int | None = None
    # Which documents are kept; prep/text/filters.py says how.
    min_chars: int | None = None
    max_chars: int | None = None
    keep_url: str | None = None
    drop_url: str | None = None
    where: tuple[str, ...] = ()
    # Share of the source files that is taken, by a hash of their names; a decimal number.
    sample: str | None = None
    # "exact": of documents with the same text, only the first stays. The limits count them all.
    dedup: str | None = None

    def __post_init__(self) -> None:
        limits = ("shard_tokens", "max_documents", "max_tokens", "unit_bytes")
        for name in (*limits, "min_chars", "max_chars"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} is {value}; expected a number of at least 1")
        if self.dedup not in (None, "exact"):
            raise ValueError(f"--dedup is {self.dedup}; expected exact, or no such option")
        self.validation_threshold()
        parse_fraction(self.sample)
        self.make_filter()

    @property
    def content(self) -> Json:
        """The options that are set: an option that is added later changes no older set's id."""
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}

    def make_filter(self) -> Filter:
        """What chooses the documents."""
        return Filter(self.min_chars, self.max_chars, self.keep_url, self.drop_url, self.where)

    def validation_threshold(self) -> int:
        """A document goes to validation if the first 64 bits of its hash are below this.

        >>> Policy(validation_fraction="0.5").validation_threshold() == 2**63
        True
        """
        try:
            fraction = Fraction(self.validation_fraction)
        except (ValueError, ZeroDivisionError):
            fraction = Fraction(-1)
        if not 0 <= fraction < 1:
            raise ValueError(
                f"--validation-fraction is {self.validation_fraction}; "
                "expected a number from 0 to less than 1, such as 0.001"
            )
        return int(fraction * 2**64)


@dataclass(frozen=True)
class Source:
    """One file that documents come from."""

    name: str
    num_bytes: int
    # As the Hub states them; None for a local file.
    sha256: str | None = None
    git_sha1: str | None = None
    # Where it lies; "" for a file of the Hub. No part of the plan's identity: data may move.
    path: str = ""
    # What it looks like there; None for a file of the Hub. It decides nothing either.
    stamp: Stamp | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Unit:
    """What one worker does at a time."""

    pieces: tuple[Piece, ...]
    num_bytes: int  # of the sources, about


@dataclass(frozen=True)
class Plan:
    """All that decides the output, and the estimate that decides nothing."""

    sources: tuple[Source, ...]
    units: tuple["Unit", ...]
    policy: Policy
    tokenizer_sha256: str
    hub: HubDataset | None
    num_text_bytes: int

    @property
    def content(self) -> Json:
        """What the plan's id is taken from: names and numbers, no paths of this machine."""
        hub = None
        if self.hub:
            hub = {key: value for key, value in asdict(self.hub).items() if key != "files"}
        return {
            "schema_version": PLAN_SCHEMA_VERSION,
            "hub": hub,
            "sources": [[s.name, s.num_bytes, s.sha256, s.git_sha1] for s in self.sources],
            "policy": self.policy.content,
            "tokenizer_sha256": self.tokenizer_sha256,
            "units": [
                [[p.name, p.start, p.stop, p.first_row] for p in unit.pieces] for unit in self.units
            ],
        }

    @property
    def plan_id(self) -> str:
        """Binds receipts to the plan they were made under."""
        return hash_canonical(self.content)

    def hub_part(self, unit: int) -> HubDataset:
        """The Hub's dataset with the files of one unit alone."""
        assert self.hub is not None
        files = tuple(self._hub_files[piece.name] for piece in self.units[unit].pieces)
        return replace(self.hub, files=files)

    @cached_property
    def _hub_files(self) -> dict[str, HubFile]:
        return {file.name: file for file in self.hub.files} if self.hub else {}


def plan_local_files(inputs: Sequence[str], policy: Policy, tokenizer_sha256: str) -> Plan:
    """Plan a set from files on this machine: paths, folders and globs."""
    sources = choose_sample(find_sources(inputs), policy.sample)
    unit_bytes = choose_unit_bytes(policy, sum(source.num_bytes for source in sources))
    sized_pieces: list[tuple[Piece, int]] = []
    for source in sources:
        pieces = [Piece(source.path, source.name)]
        if source.num_bytes > SPLIT_FROM_UNITS * unit_bytes:
            pieces = split_file(Path(source.path), source.name, unit_bytes)
        size = source.num_bytes // len(pieces)
        sized_pieces += [(replace(piece, stamp=source.stamp), size) for piece in pieces]
    text_bytes = sum(
        estimate_text_bytes(Path(source.path), policy.text_column) for source in sources
    )
    units = group_pieces(sized_pieces, unit_bytes)
    return Plan(tuple(sources), units, policy, tokenizer_sha256, None, text_bytes)


def plan_hub_dataset(dataset: HubDataset, policy: Policy, tokenizer_sha256: str) -> Plan:
    """Plan a set from a resolved and pinned dataset of the Hub."""
    sources = tuple(Source(f.name, f.num_bytes, f.sha256, f.git_sha1) for f in dataset.files)
    total_bytes = sum(source.num_bytes for source in sources)
    unit_bytes = choose_unit_bytes(policy, total_bytes)
    units = group_pieces([(Piece("", s.name), s.num_bytes) for s in sources], unit_bytes)
    # Where the card does not say: parquet of web text holds about twice its size in text.
    text_bytes = dataset.num_text_bytes or 2 * total_bytes
    return Plan(sources, units, policy, tokenizer_sha256, dataset, text_bytes)


def restore_plan(content: Json) -> Plan:
    """The plan with this content, without what decides nothing: where files lie, and estimates."""
    policy = Policy(**content["policy"] | {"where": tuple(content["policy"].get("where", ()))})
    units = tuple(
        Unit(tuple(Piece("", *piece) for piece in pieces), 0) for pieces in content["units"]
    )
    sources = tuple(Source(*entry) for entry in content["sources"])
    dataset = stored_hub_dataset(content)
    return Plan(sources, units, policy, content["tokenizer_sha256"], dataset, 0)


def stored_hub_dataset(content: Json) -> HubDataset | None:
    """The pinned dataset of a stored plan, so that starting again asks the Hub nothing."""
    if not content["hub"]:
        return None
    files = tuple(HubFile(*entry) for entry in content["sources"])
    return HubDataset(**content["hub"], files=files)


def choose_unit_bytes(policy: Policy, total_bytes: int) -> int:
    """How many source bytes make a unit.

    >>> choose_unit_bytes(Policy(), 10 << 30) >> 20
    10
    """
    if policy.unit_bytes is not None:
        return policy.unit_bytes
    return min(max(total_bytes // AIMED_UNITS, MIN_UNIT_BYTES), MAX_UNIT_BYTES)


def group_pieces(sized_pieces: Iterable[tuple[Piece, int]], unit_bytes: int) -> tuple[Unit, ...]:
    """Put consecutive pieces into a unit until it has `unit_bytes`."""
    units: list[Unit] = []
    pieces: list[Piece] = []
    size = 0
    for piece, num_bytes in sized_pieces:
        pieces.append(piece)
        size += num_bytes
        if size >= unit_bytes:
            units.append(Unit(tuple(pieces), size))
            pieces, size = [], 0
    if pieces:
        units.append(Unit(tuple(pieces), size))
    return tuple(units)


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The files that --input names, in the given order, a folder's and a glob's sorted.

    A source's name is its path below the folder that all of them share, so the same data gives
    the same dataset_id wherever it lies.
    """
    paths = list(dict.fromkeys(path for entry in inputs for path in find_files(entry)))
    if len(paths) == 1:
        root = paths[0].parent
    else:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    stamps = [(path, take_stamp(path)) for path in paths]
    return [
        Source(path.relative_to(root).as_posix(), stamp.num_bytes, path=str(path), stamp=stamp)
        for path, stamp in stamps
    ]


def find_files(entry: str) -> list[Path]:
    """The files of one --input: a file, a folder (with all below it), or a glob."""
    path = Path(entry)
    if path.is_file():
        found = [path]
        if not entry.endswith(SUFFIXES):
            raise ValueError(f"{entry}: expected a file ending in {', '.join(SUFFIXES)}")
    elif path.is_dir():
        # A set of shards below it, with prep's own folder, is no source.
        sets = [folder.parent for folder in path.rglob(".prep")]
        found = [
            file
            for file in path.rglob("*")
            if file.is_file() and not any(folder in file.parents for folder in sets)
        ]
    else:
        found = [Path(match) for match in glob.glob(entry, recursive=True)]
        if not found:
            raise ValueError(f"{entry}: no such file or folder, and as a pattern it matches none")
    files = [Path(os.path.abspath(file)) for file in found if str(file).endswith(SUFFIXES)]
    if not files:
        raise ValueError(f"{entry}: no file ending in {', '.join(SUFFIXES)} there")
    return sorted(files)


def describe_difference(stored: Json, wanted: Json) -> str:
    """In one line, how the stored plan differs from the one that the command asks for."""
    differences = []
    for key in sorted(stored["policy"].keys() | wanted["policy"].keys()):
        before, now = stored["policy"].get(key), wanted["policy"].get(key)
        if before != now:
            differences.append(f"{key} was {before}, is now {now}")
    if (stored["hub"] or {}).get("repo") != (wanted["hub"] or {}).get("repo"):
        before, now = ((plan["hub"] or {}).get("repo", "local files") for plan in (stored, wanted))
        differences.append(f"source was {before}, is now {now}")
    else:
        differences += describe_sources_difference(stored, wanted)
    if stored["tokenizer_sha256"] != wanted["tokenizer_sha256"]:
        differences.append("the tokenizer is another one")
    return "; ".join(differences) or "the units are cut differently"


def describe_sources_difference(stored: Json, wanted: Json) -> list[str]:
    """Which source files came, went or changed their size."""
    before = {entry[0]: entry[1] for entry in stored["sources"]}
    now = {entry[0]: entry[1] for entry in wanted["sources"]}
    differences = [f"{name} is new" for name in now if name not in before]
    differences += [f"{name} is gone" for name in before if name not in now]
    differences += [
        f"{name} had {before[name]:,} bytes, has {now[name]:,}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if len(differences) > 3:
        differences = [*differences[:3], f"and {len(differences) - 3} more files differ"]
    return differences
