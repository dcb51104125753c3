"""Which set is being uploaded to a URL: upload.json, and what it decides."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from shards.disk.json_files import load_json, parse_json
from shards.disk.layout import CHAT_TEMPLATE, MANIFEST, TOKENIZER, plan_path
from shards.edit.lineage import is_later, is_replaceable, list_replaced, read_earlier
from shards.exchange.packing import PACKED
from shards.exchange.storage import Storage, read_temporary
from shards.format import Manifest, parse_manifest
from shards.schema import list_copies

# Says, until an upload has finished, which set it belongs to.
UPLOAD = "upload.json"


@dataclass(frozen=True)
class Note:
    """upload.json: which set is being uploaded, and which files to delete once it is complete."""

    # A dataset_id, or a plan's.
    owner: str
    replaced: list[str]


def name_plan(plan_id: str) -> str:
    """What upload.json calls a set that prep is still making, which has no dataset_id yet."""
    return f"plan {plan_id}"


def find_plan(folder: Path) -> str | None:
    """The owner under which prep uploads the set in `folder`; None if prep did not make it."""
    path = plan_path(folder)
    return name_plan(str(load_json(path).get("plan_id"))) if path.exists() else None


def claim(storage: Storage, listed: dict[str, int], manifest: Manifest, folder: Path) -> list[str]:
    """Claim the URL for this set, before the first of its files is sent.

    Returns the objects to delete when the set is complete. What happens depends on whose
    upload.json and manifest.json are there:

        upload      manifest          what happens
        none        none              claimed; refused if a file with one of the set's names exists
        none        this set's        nothing to claim: the set is complete
        none        an earlier one's  claimed; the earlier version's files will be deleted
        this set's  any               already claimed, by a push that was stopped; it resumes
        its plan's  any               the same, by prep, unless the set has earlier versions now
        its plan's, or an earlier     claimed; the files of all earlier versions found will be
        version's   any               deleted, and those that the upload meant to delete
        other       any               refused
        none        another set's     refused

    With an upload.json, any manifest may be there, or none: a push may be killed before or after
    it writes one. Raises ValueError if the URL is refused.
    """
    names = {name for shard in manifest.shards for name in (shard.name, shard.sidecar)}
    names.update(list_copies(manifest.audit))
    note = read_note(storage, names) if UPLOAD in listed else None
    earlier: list[Manifest] = []
    if note is not None:
        earlier, plan = read_earlier(folder, manifest), find_plan(folder)
        if note.owner == manifest.dataset_id or (note.owner == plan and not earlier):
            return note.replaced
        if note.owner not in (plan, *(version.dataset_id for version in earlier)):
            refuse(storage, "holds an upload of another set that has not finished")
    if MANIFEST in listed:
        found = read_remote_manifest(storage)
        if found.dataset_id == manifest.dataset_id:
            if note is None:
                return []
        elif not is_later(manifest, found):
            refuse(storage, f"holds another set (dataset_id {found.dataset_id[:16]})")
        earlier.append(found)
    elif note is None:
        taken = names & {form.removesuffix(PACKED) for form in listed}
        if taken:
            refuse(storage, f"holds a file {min(taken)} of another origin")
    listed_old = (name for version in earlier for name in list_replaced(version, manifest))
    old = {name for name in listed_old if is_replaceable(name)}
    forms = {form for name in old for form in (name, name + PACKED) if form in listed}
    replaced = sorted(forms.union(note.replaced if note is not None else ()))
    write_note(storage, Note(manifest.dataset_id, replaced))
    return replaced


def clear_temporaries(storage: Storage, listed: dict[str, int]) -> None:
    """Delete what killed uploads left in a plain folder: files that never got their names."""
    for name in listed:
        meant = read_temporary(name)
        if is_replaceable(meant) or meant in (MANIFEST, TOKENIZER, CHAT_TEMPLATE, UPLOAD):
            storage.delete(name)


def refuse(storage: Storage, state: str) -> NoReturn:
    """ValueError for a URL that is taken."""
    raise ValueError(
        f"{storage.name}: {state}; nothing is overwritten, so choose another URL, "
        "or remove what is there"
    )


def read_remote_manifest(storage: Storage) -> Manifest:
    """The manifest of the set at a URL, checked."""
    where = f"{storage.name}/{MANIFEST}"
    return parse_manifest(storage.read_bytes(MANIFEST), where)


def read_note(storage: Storage, kept: Collection[str] = ()) -> Note:
    """Read upload.json; ValueError if it would delete a file in `kept`, or one not a set's."""
    where = f"{storage.name}/{UPLOAD}"
    raw = parse_json(storage.read_bytes(UPLOAD), where)
    replaced = raw.get("replaced", [])
    wrong = [
        name
        for name in (replaced if isinstance(replaced, list) else [replaced])
        if not is_replaceable(name) or name.removesuffix(PACKED) in kept
    ]
    if wrong or not isinstance(replaced, list):
        raise ValueError(
            f"{where}: says that {[*wrong, replaced][0]!r} is to be deleted, which no upload does; "
            "it was edited or damaged, so remove it and push again"
        )
    return Note(str(raw.get("owner")), replaced)


def write_note(storage: Storage, note: Note) -> None:
    """Write upload.json; this is what claims the URL."""
    storage.write(UPLOAD, [json.dumps(asdict(note)).encode()])
