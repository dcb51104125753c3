"""`velocity shards remove`: what was found, which steps of a run saw it, and the removal.

Steps are computed over the version that still has the documents, and reported before it changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.disk.layout import append_folder
from shards.disk.lock import lock_set
from shards.edit.remove import Found, Wanted, find_missing, find_wanted, remove_documents
from shards.edit.versions import finish_version, has_begun_append
from shards.reader import open_shards
from shards.screen.lines import Say
from train.tracing.describe import describe_sightings
from train.tracing.runs import find_run


@dataclass(frozen=True)
class Takedown:
    """What to remove, and how."""

    folder: Path
    wanted: Wanted
    keeps_places: bool
    # A run's checkpoints; None = those in checkpoints/, if they belong to this set.
    run: Path | None = None
    is_dry: bool = False


def take_down(takedown: Takedown, say: Say) -> Iterator[str]:
    """Remove the documents; yields the report line by line. ValueError if the set cannot change."""
    folder = takedown.folder
    open_shards(folder)  # Refuses a folder without a set before a lock is made in it.
    with lock_set(folder):
        if finish_version(folder):
            say(f"{folder}: finished a version whose command was stopped")
        if has_begun_append(folder):
            raise ValueError(
                f"{folder}: an append was not finished and may contain what is to be removed; run "
                f"the same prep command again, or remove {append_folder(folder)}"
            )
        shards = open_shards(folder)
        tracer = find_run(shards, takedown.run, say)
        found = find_wanted(shards, takedown.wanted)
        yield from describe_found(takedown.wanted, found)
        if not found:
            say(f"{folder}: contains none of these documents; nothing was changed")
            return
        if tracer:
            in_train = (entry.document for entry in found if entry.shard.split == "train")
            yield from describe_sightings(tracer, in_train)
        if takedown.is_dry:
            say(f"{folder}: nothing was changed, because of --dry-run")
            return
        manifest = remove_documents(shards, found, takedown.keeps_places)
        say(f"{folder}: dataset_id {shards.manifest.dataset_id} became {manifest.dataset_id}")


def describe_found(wanted: Wanted, found: list[Found]) -> Iterator[str]:
    """What was found, by split, and what was not."""
    missing = find_missing(wanted, found)
    num_wanted = len(wanted.urls) + len(wanted.hashes)
    num_tokens = sum(entry.document.num_tokens for entry in found)
    in_train = sum(entry.shard.split == "train" for entry in found)
    yield (
        f"found {num_wanted - len(missing):,} of {num_wanted:,}: {len(found):,} documents, "
        f"{num_tokens:,} tokens ({in_train:,} in train, {len(found) - in_train:,} in validation)"
    )
    for entry in missing:
        yield f"not found: {entry}"
