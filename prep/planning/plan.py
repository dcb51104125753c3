"""The plan: what will be read, cut into units, fixed before the first document is encoded.

A unit is a source file, a part of a large one, or a few small ones. It becomes shards of its own,
named after its number, so the output is the same whoever does the work and in whatever order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from prep.planning.subset import choose_sample
from prep.readers.documents import BadDocument, Piece
from prep.readers.formats import estimate_text_bytes, split_file
from prep.request import PINNED, Policy
from prep.sources.hub_files import HubDataset, HubFile
from prep.sources.local import Source, find_sources
from prep.tokenizer.identity import SetTokenizer, identify_gpt2
from shards.disk.json_files import Json, hash_canonical, load_json
from shards.disk.shapes import HASH, OrNull, find_misshape
from shards.screen.lines import Say

PLAN_SCHEMA_VERSION = 1
# Source bytes of a unit if the user gives none: small enough to keep all workers busy and to
# lose little when one dies, large enough that a set has thousands of shards, not millions.
MIN_UNIT_BYTES = 8 << 20
MAX_UNIT_BYTES = 64 << 20
AIMED_UNITS = 1024
PLAN_SHAPE = {
    "plan_id": HASH,
    "content": {
        "schema_version": int,
        "hub": OrNull({"repo": str, "split": str, "revision": str}),
        "sources": [list],
        "policy": {"validation_fraction": str, "where?": [str]},
        "tokenizer_sha256": HASH,
        "units": [[list]],
    },
}
# A file is cut only when it is this many units long, so that ordinary files stay whole.
SPLIT_FROM_UNITS = 2


@dataclass(frozen=True)
class Unit:
    """What one worker does at a time."""

    pieces: tuple[Piece, ...]
    num_bytes: int  # of the sources, about


@dataclass(frozen=True)
class Plan:
    """Everything that decides the output, and an estimate that decides nothing."""

    sources: tuple[Source, ...]
    units: tuple["Unit", ...]
    policy: Policy
    tokenizer: SetTokenizer
    hub: HubDataset | None
    num_text_bytes: int

    @property
    def content(self) -> Json:
        """What the plan's id is computed from: names and numbers, no paths of this machine."""
        hub = None
        if self.hub:
            hub = {key: value for key, value in asdict(self.hub).items() if key != "files"}
        return {
            "schema_version": PLAN_SCHEMA_VERSION,
            "hub": hub,
            "sources": [[s.name, s.num_bytes, s.sha256, s.git_sha1] for s in self.sources],
            "policy": self.policy.content,
            "tokenizer_sha256": self.tokenizer.sha256,
            "units": [
                [[p.name, p.start, p.stop, p.first_row] for p in unit.pieces] for unit in self.units
            ],
        }

    @property
    def plan_id(self) -> str:
        """Binds receipts to the plan they were made under."""
        return hash_canonical(self.content)

    def hub_part(self, unit: int) -> HubDataset:
        """The Hub dataset with only the files of one unit."""
        assert self.hub is not None
        files = tuple(self._hub_files[piece.name] for piece in self.units[unit].pieces)
        return replace(self.hub, files=files)

    @cached_property
    def _hub_files(self) -> dict[str, HubFile]:
        return {file.name: file for file in self.hub.files} if self.hub else {}


def plan_local_files(
    inputs: Sequence[str],
    policy: Policy,
    tokenizer: SetTokenizer,
    say: Say = lambda line: None,
) -> Plan:
    """Plan a set from files on this machine: paths, folders and patterns.

    `say` gets a line about the files that are left out.
    """
    sources = choose_sample(find_sources(inputs, policy.text_column, say), policy.sample)
    unit_bytes = choose_unit_bytes(policy, sum(source.num_bytes for source in sources))
    sized_pieces: list[tuple[Piece, int]] = []
    text_bytes = 0
    for source in sources:
        pieces, num_bytes = examine_source(source, policy, unit_bytes)
        size = source.num_bytes // len(pieces)
        sized_pieces += [(replace(piece, stamp=source.stamp), size) for piece in pieces]
        text_bytes += num_bytes
    units = group_pieces(sized_pieces, unit_bytes)
    return Plan(tuple(sources), units, policy, tokenizer, None, text_bytes)


def examine_source(source: Source, policy: Policy, unit_bytes: int) -> tuple[list[Piece], int]:
    """The pieces of a local file, and about how many bytes of text it holds.

    A bad file holds none if bad ones are left out; whoever reads it counts it.
    """
    path = Path(source.path)
    pieces = [Piece(source.path, source.name)]
    try:
        if source.num_bytes > SPLIT_FROM_UNITS * unit_bytes:
            pieces = split_file(path, source.name, unit_bytes)
        return pieces, estimate_text_bytes(path, policy.text_column)
    except BadDocument:
        if not policy.skips_bad:
            raise
        return pieces, 0


def plan_hub_dataset(dataset: HubDataset, policy: Policy, tokenizer: SetTokenizer) -> Plan:
    """Plan a set from a resolved and pinned dataset of the Hub."""
    sources = tuple(Source(f.name, f.num_bytes, f.sha256, f.git_sha1) for f in dataset.files)
    total_bytes = sum(source.num_bytes for source in sources)
    unit_bytes = choose_unit_bytes(policy, total_bytes)
    units = group_pieces([(Piece("", s.name), s.num_bytes) for s in sources], unit_bytes)
    # If the card does not say: parquet of web text holds about twice its size in text.
    text_bytes = dataset.num_text_bytes or 2 * total_bytes
    return Plan(sources, units, policy, tokenizer, dataset, text_bytes)


def read_plan(path: Path) -> tuple[Json, Plan]:
    """The content of plan.json, and the plan that it is; ValueError if it is damaged."""
    raw = load_json(path)
    fault = find_misshape(raw, PLAN_SHAPE)
    if fault is None and hash_canonical(raw["content"]) != raw["plan_id"]:
        fault = "its content does not hash to its plan_id"
    try:
        if fault is None and (plan := restore_plan(raw["content"])).plan_id == raw["plan_id"]:
            return raw["content"], plan
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise ValueError(
        f"{path}: is damaged, or from another version of velocity"
        f"{f' ({fault})' if fault else ''}; go on with the version that made it, or choose another "
        "--out and start over"
    )


def restore_plan(content: Json) -> Plan:
    """The plan with this content, of PLAN_SHAPE, without what decides nothing: paths and estimates.

    Raises KeyError, TypeError, ValueError or AttributeError if it is no plan's content.
    """
    if not all(map(is_source, content["sources"])):
        raise ValueError("sources")
    several = {name: tuple(content["policy"].get(name, ())) for name in ("where", PINNED)}
    policy = Policy(**content["policy"] | several)
    units = tuple(
        Unit(tuple(Piece("", *piece) for piece in pieces), 0) for pieces in content["units"]
    )
    sources = tuple(Source(*entry) for entry in content["sources"])
    dataset = stored_hub_dataset(content)
    tokenizer = replace(identify_gpt2(), sha256=content["tokenizer_sha256"])
    return Plan(sources, units, policy, tokenizer, dataset, 0)


def is_source(entry: list[object]) -> bool:
    """Whether this is a source in a plan's content: its name, size, sha256 and git_sha1."""
    match entry:
        case [str(), int(), str() | None, str() | None]:
            return True
        case _:
            return False


def stored_hub_dataset(content: Json) -> HubDataset | None:
    """The pinned dataset of a stored plan, so that resuming asks the Hub for nothing."""
    if not content["hub"]:
        return None
    files = tuple(HubFile(*entry) for entry in content["sources"])
    return HubDataset(**content["hub"], files=files)


def choose_unit_bytes(policy: Policy, total_bytes: int) -> int:
    """The source bytes of a unit: as asked for, else by the total.

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
