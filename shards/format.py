"""What a set of shards says about itself: manifest.json, and how it is read and checked.

The manifest's `content` holds everything that decides which tokens are in the set and where; the
sha256 of its canonical JSON is the `dataset_id`. Versions, hosts and times are kept outside it.
The file is sealed (shards/disk/json_files.py), so that no bit of it changes unseen.
"""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.disk.json_files import (
    SEAL,
    Json,
    hash_canonical,
    is_sealed,
    parse_json,
    read_json,
    seal_json,
)
from shards.disk.layout import MANIFEST, describe_unfinished
from shards.disk.shapes import find_misshape
from shards.parent import PART, Parent
from shards.schema import (
    LOSS_TOKENS,
    MANIFEST_SHAPE,
    PACKING_COUNTS,
    count_chat,
    find_contradiction,
)
from shards.screen.url import refuse_url
from shards.widths import (
    KNOWN_VERSIONS,
    Dtype,
    choose_schema_version,
    find_row_tokens,
    find_token_bytes,
    token_dtype,
)

# Counts and positions of tokens and documents.
Int64 = npt.NDArray[np.int64]

SPLITS = ("train", "validation")

# The keys of manifest.json before its SEAL, which sets of earlier releases lack.
KEYS = ("schema_version", "dataset_id", "content", "totals", "audit", "environment")


def check_split(split: str) -> None:
    """ValueError if this is not a split."""
    if split not in SPLITS:
        raise ValueError(f"--split is {split!r:.60}; expected one of {', '.join(SPLITS)}")


@dataclass(frozen=True)
class Shard:
    """One .bin of the set and what it holds."""

    split: str
    name: str
    num_tokens: int
    num_documents: int
    sha256: str
    token_bytes: int = 2  # Of an id; the manifest says it once for all shards.
    # Of a packed set: the tokens of a row (also said once), stretches of padding and their tokens,
    # and how many documents are longer than a row.
    row_tokens: int | None = None
    num_paddings: int = 0
    padding_tokens: int = 0
    num_cut: int = 0
    # Of a set of chats: the tokens that are trained on.
    loss_tokens: int | None = None

    @property
    def num_bytes(self) -> int:
        """The size of the .bin."""
        return self.num_tokens * self.token_bytes

    @property
    def dtype(self) -> Dtype:
        """Of the ids in the .bin."""
        return token_dtype(self.token_bytes)

    def describe(self) -> Json:
        """Its entry in the manifest."""
        unsaid = {"token_bytes", "row_tokens", *(PACKING_COUNTS if self.row_tokens is None else ())}
        unsaid |= {LOSS_TOKENS} if self.loss_tokens is None else set()
        return {key: value for key, value in asdict(self).items() if key not in unsaid}

    @property
    def num_rows(self) -> int:
        """The rows of its sidecar: one for each document, and one for each stretch of padding."""
        return self.num_documents + self.num_paddings

    @property
    def sidecar(self) -> str:
        """The name of the parquet file with one row per document.

        >>> Shard("train", "train-00000.bin", 0, 0, "").sidecar
        'train-00000.docs.parquet'
        """
        return self.name.removesuffix(".bin") + ".docs.parquet"


@dataclass(frozen=True)
class Manifest:
    """A finished set: `content` decides the tokens, the rest says how they were made."""

    dataset_id: str
    content: Json
    audit: Json
    environment: Json
    # Whether the file has a hash of itself, so that all of this is what was written.
    is_sealed: bool = False

    @cached_property
    def shards(self) -> Sequence[Shard]:
        """All shards, in manifest order: the order in which a split's tokens are counted."""
        shared: Json = {"token_bytes": self.token_bytes, "row_tokens": self.row_tokens}
        return tuple(Shard(**entry, **shared) for entry in self.content["shards"])

    @property
    def token_bytes(self) -> int:
        """The bytes of an id in the set's shards: 2 or 4."""
        return find_token_bytes(self.content)

    @property
    def row_tokens(self) -> int | None:
        """The tokens of a row, if the set is packed: all of its shards are whole rows."""
        return find_row_tokens(self.content)

    @property
    def chat(self) -> Json | None:
        """Of a set of chats: their kind, their template, and how many tokens are trained on."""
        found: Json | None = self.content.get("chat")
        return found

    def split(self, name: str) -> list[Shard]:
        """The shards of one split, in manifest order."""
        return [shard for shard in self.shards if shard.split == name]

    def num_tokens(self, split: str) -> int:
        """How many tokens a split holds."""
        return sum(shard.num_tokens for shard in self.split(split))

    @property
    def same_places(self) -> list[str]:
        """The dataset_ids of earlier versions in which every remaining token had the same place.

        A run on one of these may resume on this version: the sample order is the same.
        """
        return list(self.content.get("same_places", []))

    @property
    def parent(self) -> Parent | None:
        """The set that this one was made from; None if prep or an import made it."""
        raw = self.content.get("parent")
        known = {entry.name for entry in fields(Parent)}
        return Parent(**{key: raw[key] for key in raw if key in known}) if raw else None

    @property
    def ancestors(self) -> list[str]:
        """The dataset_ids of all earlier versions of this set; empty for a part of a set.

        Oldest first, except for what stems from versions that did not list them yet: sorted.
        """
        parent = self.parent
        if parent is None or parent.change == PART:
            return []
        named: list[str] = self.content.get("ancestors", [])
        return named or sorted({parent.dataset_id, *self.same_places})

    def sidecar_sha256(self, shard: Shard) -> str | None:
        """The sha256 of a shard's sidecar; None if the manifest does not record it."""
        value = self.environment.get("sidecar_sha256", {}).get(shard.sidecar)
        return None if value is None else str(value)

    def next_version(
        self,
        parent: Parent,
        shards: list[Shard],
        sidecar_sha256: dict[str, str],
        audit: Json,
        keeps_places: bool = False,
        **content: object,
    ) -> str:
        """The manifest, as text, of a set made from this one.

        `shards` are all of the new set's shards, `sidecar_sha256` has the hashes of its new
        sidecars, and `keeps_places` says that every remaining token is where it was. `content`
        has the other entries that change; all the rest are kept.
        """
        stays = {k: v for k, v in self.content.items() if k not in ("same_places", "ancestors")}
        known = {**self.environment.get("sidecar_sha256", {}), **sidecar_sha256}
        present = {s.sidecar: known[s.sidecar] for s in shards if s.sidecar in known}
        environment = self.environment | {"sidecar_sha256": present}
        content = stays | content | {"parent": parent.describe()}
        if parent.change != PART:
            content["ancestors"] = [*self.ancestors, self.dataset_id]
            environment["changed"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if keeps_places:
            content["same_places"] = [*self.same_places, self.dataset_id]
        return make_manifest(content, shards, audit, environment)

    @property
    def vocab_size(self) -> int:
        """The number of ids in the tokenizer."""
        return int(self.content["tokenizer"]["vocab_size"])

    @property
    def end_of_text(self) -> int:
        """The id that follows every document."""
        return int(self.content["tokenizer"]["end_of_text"])

    @property
    def begin_of_text(self) -> int | None:
        """The id before every document; None if there is none."""
        found = self.content["tokenizer"].get("begin_of_text")
        return None if found is None else int(found)


def make_manifest(content: Json, shards: Iterable[Shard], audit: Json, environment: Json) -> str:
    """The text of manifest.json for a finished set."""
    content = content | {"shards": [shard.describe() for shard in shards]}
    totals, is_chat = count_totals(content["shards"]), "chat" in content
    if is_chat:
        content["chat"] = content["chat"] | count_chat(content["shards"])
    version = choose_schema_version(find_token_bytes(content), find_row_tokens(content), is_chat)
    values = (version, hash_canonical(content), content, totals, audit, environment)
    return seal_json(dict(zip(KEYS, values, strict=True)))


def count_totals(shards: list[Json]) -> Json:
    """Shards, documents and tokens of each split."""
    totals = {}
    for split in SPLITS:
        entries = [shard for shard in shards if shard["split"] == split]
        totals[split] = {
            "shards": len(entries),
            "documents": sum(entry["num_documents"] for entry in entries),
            "tokens": sum(entry["num_tokens"] for entry in entries),
        }
    return totals


def read_manifest(folder: Path) -> Manifest:
    """Read and check a set's manifest; ValueError, one line, if none is there or it is unsound."""
    refuse_url(folder)
    return load_manifest(folder / MANIFEST, describe_unfinished(folder))


def load_manifest(path: Path, missing: str | None = None) -> Manifest:
    """Read and check a manifest; ValueError with one line, `missing` if there is no such file."""
    return parse_manifest(read_json(path, missing), path)


def parse_manifest(text: str | bytes, path: Path | str) -> Manifest:
    """Check the text of a manifest; `path` is what errors call it.

    Raises ValueError with one line if it is damaged, was edited, or has another schema version.
    """
    advice = (
        "so it was edited or damaged; restore the file from a copy (versions/ may have one), or "
        "make the set again with the command that made it"
    )
    raw = parse_json(text, path, f", {advice}")
    if SEAL in raw and not is_sealed(text, raw):
        raise ValueError(f"{path}: its lines do not hash to its {SEAL}, {advice}")
    version, known = raw.get("schema_version"), KNOWN_VERSIONS
    if version not in known or isinstance(version, bool):
        raise ValueError(
            f"{path}: schema_version is {version!r:.60}; this velocity reads "
            f"{known[0]} to {known[-1]}, so prepare the set again or use the version that "
            "made it"
        )
    if raw.keys() - {SEAL} != set(KEYS):
        wrong = min(raw.keys() - {SEAL} ^ set(KEYS))
        state = "is missing" if wrong in KEYS else "is not a key of a manifest"
        raise ValueError(f"{path}: {wrong:.60} {state}, {advice}")
    if hash_canonical(raw["content"]) != raw["dataset_id"]:
        raise ValueError(f"{path}: its content does not hash to its dataset_id, {advice}")
    fault = find_misshape(raw, MANIFEST_SHAPE)
    if not fault:
        fault = find_contradiction(raw, count_totals(raw["content"]["shards"]))
    if fault:
        raise ValueError(f"{path}: {fault}; restore the file from where the set was made")
    manifest = Manifest(
        raw["dataset_id"], raw["content"], raw["audit"], raw["environment"], SEAL in raw
    )
    check_names(path, [(shard.name, shard.split) for shard in manifest.shards])
    return manifest


def check_names(path: Path | str, shards: list[tuple[str, str]]) -> None:
    """ValueError if a shard's name leads out of the folder or occurs twice."""
    for name, split in shards:
        plain = name == os.path.basename(name) and "\\" not in name and name.isprintable()
        if not plain or not name.endswith(".bin") or name == ".bin" or split not in SPLITS:
            raise ValueError(
                f"{path}: {name!r} is not a shard's name; "
                "expected a plain file name such as train-00000.bin"
            )
    if len({name for name, _ in shards}) < len(shards):
        raise ValueError(f"{path}: names a shard twice; restore it from where the set was made")
