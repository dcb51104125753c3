"""The plan: what will be read, cut into units, fixed before the first document is encoded.

A unit is a source file, a part of a large one, or a few small ones. It becomes shards of its own,
named after its number, so the output is the same whoever does the work and in whatever order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from prep.planning.subset import choose_sample
from prep.policy import PINNED, Policy
from prep.readers.documents import BadDocument, Piece
from prep.readers.formats import COMPRESSION_RATIO, estimate_text_bytes, split_file
from prep.remote.hub_files import HubDataset, HubFile
from prep.remote.pinned import RemoteFile
from prep.remote.places import name_places, part_inputs, with_urls
from prep.sources.local import Source, find_sources
from prep.tokenizer.identity import IN_PLAN_SHAPE, SetTokenizer, restore_tokenizer
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
        "urls?": [str],
        "sources": [list],
        "policy": {"validation_fraction": str, "where?": [str]},
        "tokenizer_sha256": HASH,
        "tokenizer?": IN_PLAN_SHAPE,
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
    # Files at URLs that --input gave: which URLs, without keys, and what was found there.
    urls: tuple[str, ...] = ()
    at_urls: tuple[RemoteFile, ...] = ()

    @property
    def content(self) -> Json:
        """What the plan's id is computed from: names and numbers, no paths of this machine."""
        in_plan = self.tokenizer.in_plan
        return {
            "schema_version": PLAN_SCHEMA_VERSION,
            "hub": self.hub.content if self.hub else None,
            **({"urls": list(self.urls)} if self.urls else {}),
            "sources": [self._describe(source) for source in self.sources],
            "policy": self.policy.content,
            "tokenizer_sha256": self.tokenizer.sha256,
            **({} if in_plan is None else {"tokenizer": in_plan}),
            "units": [
                [[p.name, p.start, p.stop, p.first_row] for p in unit.pieces] for unit in self.units
            ],
        }

    def _describe(self, source: Source) -> list[str | int | None]:
        entry: list[str | int | None] = [
            source.name,
            source.num_bytes,
            source.sha256,
            source.git_sha1,
        ]
        file = self._remote.get(source.name)
        return entry if self.hub or file is None else [*entry, file.pin, file.place]

    @property
    def plan_id(self) -> str:
        """Binds receipts to the plan they were made under."""
        return hash_canonical(self.content)

    @property
    def fetches(self) -> bool:
        """Whether files must be fetched."""
        return bool(self._remote)

    def remote_part(self, unit: int) -> tuple[RemoteFile, ...]:
        """The files of one unit that are not on this machine."""
        names = dict.fromkeys(piece.name for piece in self.units[unit].pieces)
        return tuple(self._remote[name] for name in names if name in self._remote)

    @cached_property
    def _remote(self) -> dict[str, RemoteFile]:
        if self.hub:
            return {file.name: self.hub.locate(file) for file in self.hub.files}
        return {file.name: file for file in self.at_urls}


def plan_inputs(
    inputs: Sequence[str],
    policy: Policy,
    tokenizer: SetTokenizer,
    say: Say = lambda line: None,
    at_urls: tuple[RemoteFile, ...] = (),
    split: str = "train",
) -> Plan:
    """Plan a set from what --input gives: paths, folders and patterns, then files at URLs.

    `at_urls` is what its URLs mean, `split` which one of saved Hub datasets. `say` gets a line
    about the local files that are left out.
    """
    paths, urls = part_inputs(inputs)
    found = find_sources(paths, policy.reads, say, split) if paths else []
    local = choose_sample(found, policy.sample) if found else []
    remote = [Source(file.name, file.num_bytes, file.sha256, file.git_sha1) for file in at_urls]
    sources = (*local, *remote)
    unit_bytes = choose_unit_bytes(policy, sum(source.num_bytes for source in sources))
    sized_pieces: list[tuple[Piece, int]] = []
    text_bytes = sum(guess_text_bytes(source) for source in remote)
    for source in local:
        pieces, num_bytes = examine_source(source, policy, unit_bytes)
        size = source.num_bytes // len(pieces)
        sized_pieces += [(replace(piece, stamp=source.stamp), size) for piece in pieces]
        text_bytes += num_bytes
    # No unit has both, so that one of local files waits for none to arrive.
    units = group_pieces(sized_pieces, unit_bytes) + group_whole(remote, unit_bytes)
    return Plan(
        sources, units, policy, tokenizer, None, text_bytes, name_places(urls), tuple(at_urls)
    )


def examine_source(source: Source, policy: Policy, unit_bytes: int) -> tuple[list[Piece], int]:
    """The pieces of a local file, and about how many bytes of text it holds.

    A bad file holds none if bad ones are left out; whoever reads it counts it.
    """
    path = Path(source.path)
    pieces = [Piece(source.path, source.name)]
    try:
        if source.num_bytes > SPLIT_FROM_UNITS * unit_bytes:
            pieces = split_file(path, source.name, unit_bytes)
        return pieces, estimate_text_bytes(path, policy.reads)
    except BadDocument:
        if not policy.skips_bad:
            raise
        return pieces, 0


def plan_hub_dataset(dataset: HubDataset, policy: Policy, tokenizer: SetTokenizer) -> Plan:
    """Plan a set from a resolved and pinned dataset of the Hub."""
    sources = tuple(Source(f.name, f.num_bytes, f.sha256, f.git_sha1) for f in dataset.files)
    unit_bytes = choose_unit_bytes(policy, sum(source.num_bytes for source in sources))
    units = group_whole(sources, unit_bytes)
    text_bytes = dataset.num_text_bytes or sum(map(guess_text_bytes, sources))
    return Plan(sources, units, policy, tokenizer, dataset, text_bytes)


def guess_text_bytes(source: Source) -> int:
    """About how much text a file holds, by its name: parquet of web text holds twice its size.

    >>> guess_text_bytes(Source("a.parquet", 100)), guess_text_bytes(Source("a.json.gz", 100))
    (200, 400)
    """
    suffix = source.name.lower().rpartition(".")[2]
    ratio = {"parquet": 2, "txt": 1, "jsonl": 1, "ndjson": 1, "json": 1}
    return source.num_bytes * ratio.get(suffix, COMPRESSION_RATIO)


def group_whole(sources: Iterable[Source], unit_bytes: int) -> tuple[Unit, ...]:
    """Units of whole files that are yet to be fetched."""
    return group_pieces([(Piece("", s.name), s.num_bytes) for s in sources], unit_bytes)


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
    several = {
        name: tuple(content["policy"].get(name, ()))
        for name in ("where", "keep_column", PINNED, "template_tokens")
    }
    policy = Policy(**content["policy"] | several)
    units = tuple(
        Unit(tuple(Piece("", *piece) for piece in pieces), 0) for pieces in content["units"]
    )
    sources = tuple(Source(*entry[:4]) for entry in content["sources"])
    dataset = stored_hub_dataset(content)
    tokenizer = restore_tokenizer(content["tokenizer_sha256"], content.get("tokenizer"))
    urls = tuple(content.get("urls", ()))
    return Plan(sources, units, policy, tokenizer, dataset, 0, urls, stored_remote(content))


def is_source(entry: list[object]) -> bool:
    """Whether this is a source in a plan's content: its name, size, sha256 and git_sha1.

    One at a URL has its pin as well, and which of the URLs led to it.
    """
    match entry:
        case [str(), int(), str() | None, str() | None]:
            return True
        case [str(), int(), str() | None, str() | None, str(), int()]:
            return True
        case _:
            return False


def stored_hub_dataset(content: Json) -> HubDataset | None:
    """The pinned dataset of a stored plan, so that resuming asks the Hub for nothing."""
    if not content["hub"]:
        return None
    files = tuple(HubFile(*entry) for entry in content["sources"])
    several = {name: tuple(content["hub"].get(name, ())) for name in ("more_configs", "data_files")}
    return HubDataset(**content["hub"] | several, files=files)


def stored_remote(content: Json) -> tuple[RemoteFile, ...]:
    """The pinned files at URLs of a stored plan, without the URLs to fetch them from."""
    return tuple(RemoteFile(*entry) for entry in content["sources"] if len(entry) > 4)


def stored_at_urls(content: Json, urls: Sequence[str]) -> tuple[RemoteFile, ...] | None:
    """The files of a stored plan, if it is for these URLs: then nothing is listed again."""
    if tuple(content.get("urls", ())) != name_places(urls):
        return None
    return with_urls(stored_remote(content), urls)


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
