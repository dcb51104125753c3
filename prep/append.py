"""`velocity prep --append`: more sources for a finished set, as a new version of it.

.prep/append/      the new sources as a set of their own, made as any other is

When that set is whole, its shards are renamed to follow the last ones of the old set, and a
manifest that lists both replaces the old one. No other file of the old set is touched.
"""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath

from prep.checks import parse_number
from prep.manifest import check_conservation, describe_bad, find_kind
from prep.planning.plan import Plan, read_plan
from prep.planning.settle import settle_plan
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from prep.text.contained import pin_contained
from prep.units.receipts import Audit
from prep.units.workspace import make_folders
from shards.disk.folders import remove
from shards.disk.json_files import Json
from shards.disk.layout import MANIFEST, append_folder, plan_path
from shards.disk.lock import lock_set
from shards.edit.next_version import NextVersion
from shards.edit.versions import (
    commit_version,
    finish_version,
    has_begun_append,
    list_versions,
)
from shards.format import SPLITS, Manifest, Shard, read_manifest
from shards.parent import APPEND, Parent
from shards.schema import list_copies
from shards.screen.lines import Say

# How the new sources are read, and how much of them: may differ from append to append.
OWN_OPTIONS = {
    "text_column",
    "blank_line_documents",
    "max_documents",
    "max_tokens",
    "unit_bytes",
    "sample",
    "on_bad_document",
}
NUMBERED = re.compile(r"(train|validation)-(\d+)(.*\.bin)")


def append_sources(request: Request, say: Say) -> Manifest:
    """Add the request's sources to the set in `request.out`; returns the new version's manifest.

    Raises ValueError or OSError for what the user can fix; the set stays as it was until the new
    version replaces it, and the same call resumes after a kill.
    """
    out = request.out
    read_manifest(out)  # Refuses a folder without a set, and leaves it as it is.
    request = replace(request, policy=pin_contained(request.policy))
    with lock_set(out):
        if finish_version(out):
            say(f"{out}: finished a version whose command was stopped")
        manifest = read_manifest(out)
        request = replace(request, policy=take_template(request.policy, manifest))
        check_policy(manifest, request)
        read_audit(out, manifest)  # Refused before anything is made.
        folder = append_folder(out)
        if has_begun_append(out):
            say(f"{out}: resuming the append in {folder}; remove that folder to give it up")
        try:
            make_folders(folder)
            addition = make_addition(replace(request, out=folder, after=out), manifest, say)
        except BaseException:
            if not has_begun_append(out):
                remove(folder, ignore_errors=True)
            raise
        if addition is None:
            remove(folder)
            return manifest
        following = join(out, manifest, addition, read_plan(plan_path(folder))[1].plan_id)
        manifest = commit_version(out, plan_version(out, manifest, addition, following))
    for line in summarize(out, manifest):
        say(line)
    return manifest


def make_addition(request: Request, manifest: Manifest, say: Say) -> Manifest | None:
    """The new sources as a set of their own in `request.out`; None if nothing would be added."""
    plan = settle_plan(request, lambda line: None)
    if is_appended(manifest, plan):
        say(f"{request.after}: these sources are in the set already; nothing was done")
        return None
    check_sources(manifest, plan)
    addition = prepare(request, say)
    for line in describe_bad(Audit(**addition.audit)):
        say(line)
    if not any(shard.num_documents for shard in addition.shards):
        dropped = ", ".join(f"{n:,} {why}" for why, n in addition.audit["dropped"].items() if n)
        say(
            f"{request.after}: nothing to append: no document of these sources is kept "
            f"({dropped or 'they have none'}); the set stays as it is"
        )
        return None
    return addition


def take_template(policy: Policy, manifest: Manifest) -> Policy:
    """The policy with the template of the set: appended chats are made with the same."""
    before = manifest.content["policy"]
    if not (policy.chat and before.get("chat")):
        return policy
    tokens = tuple(before.get("template_tokens", ()))
    return replace(policy, template_sha256=before.get("template_sha256"), template_tokens=tokens)


def check_policy(manifest: Manifest, request: Request) -> None:
    """ValueError if the new documents would be treated differently from those in the set."""
    before = manifest.content["policy"]
    if "imported" in before:
        raise ValueError(
            f"{request.out}: is an imported set, and imported sets cannot be appended to; import "
            "all files again into another --out, or train on a set that prep made from the text"
        )
    wanted = json.loads(json.dumps(request.policy.content))
    differences = [
        f"{name} was {before.get(name)}, is now {wanted.get(name)}"
        for name in sorted({*before, *wanted} - OWN_OPTIONS)
        if not is_same(name, before.get(name), wanted.get(name))
    ]
    if differences:
        raise ValueError(
            f"{request.out}: was made with other options: {'; '.join(differences)}; "
            "append with the options that it was made with"
        )


def read_audit(out: Path, manifest: Manifest) -> Audit:
    """The set's audit; ValueError if it does not add up, or counts what is not known here."""
    unknown = manifest.audit.keys() - {entry.name for entry in fields(Audit)}
    if unknown:
        raise ValueError(
            f"{out / MANIFEST}: audit.{min(unknown):.60} is not known to this velocity; "
            "append with the version that made the set"
        )
    audit = Audit(**manifest.audit)
    kept = audit.train + audit.validation + sum(audit.dropped.values())
    if not audit.documents_read == kept == sum(audit.rows_by_source.values()):
        raise ValueError(
            f"{out / MANIFEST}: its audit does not add up ({audit.documents_read:,} documents "
            f"read, {kept:,} kept or dropped); restore the file from where the set was made"
        )
    return audit


def is_same(name: str, before: object, wanted: object) -> bool:
    """Whether two values of an option mean the same, as 0.05 and 0.050 do."""
    if name == "validation_fraction" and before and wanted:
        return before == wanted or parse_number(before) == parse_number(wanted)
    return before == wanted


def is_appended(manifest: Manifest, plan: Plan) -> bool:
    """Whether an append with exactly this plan is already in the set."""
    return any(entry["plan_id"] == plan.plan_id for entry in list_appended(manifest))


def list_appended(manifest: Manifest) -> list[Json]:
    """What was appended so far, oldest first."""
    return list(manifest.content.get("appended", []))


def check_sources(manifest: Manifest, plan: Plan) -> None:
    """ValueError if a source is already in the set, or would be mistaken for one that is."""
    here = plan.hub.repo if plan.hub else None
    known = list_sources(manifest)
    present = [source.name for source in plan.sources if (here, source.name) in known]
    if present:
        more = f" (and {len(present) - 1:,} more)" if len(present) > 1 else ""
        raise ValueError(
            f"{present[0]}{more}: the set already has a source of this name; leave it out, or if "
            "it is a different file, give it another name (a link will do)"
        )
    if here is None:
        check_copies(manifest, plan, {name for repo, name in known if repo is None})


def check_copies(manifest: Manifest, plan: Plan, known: set[str]) -> None:
    """ValueError if a local source looks like one that the set has under another folder."""
    files = manifest.content["sources"]["files"]
    looks = {look(f["name"], f["num_bytes"]): f["name"] for f in files if f["name"] in known}
    for source in plan.sources:
        twin = looks.get(look(source.name, source.num_bytes))
        if twin is not None:
            raise ValueError(
                f"{source.name}: looks like {twin}, which the set already has (the same name and "
                f"{source.num_bytes:,} bytes); give only the new files, or if it is a different "
                "file, give it another name (a link will do)"
            )


def look(name: str, num_bytes: int) -> tuple[str, int]:
    """What identifies a file in any folder: its last name and its size."""
    return PurePosixPath(name).name, num_bytes


def list_sources(manifest: Manifest) -> set[tuple[str | None, str]]:
    """The sources of a set: the Hub repository (None for local files) and name of each."""
    sources, appended = manifest.content["sources"], list_appended(manifest)
    files = sources["files"]
    num_first = len(files) - sum(entry["files"] for entry in appended)
    groups = [(sources["hub"], num_first)] + [(e["hub"], e["files"]) for e in appended]
    repositories = [hub["repo"] if hub else None for hub, count in groups for _ in range(count)]
    names = [file["name"] for file in files]
    return set(zip(repositories, names, strict=True))


def join(out: Path, manifest: Manifest, addition: Manifest, plan_id: str) -> str:
    """The manifest of the new version: the old set's shards first in each split."""
    renamed = rename_shards(out, manifest, addition)
    sources, more = manifest.content["sources"], addition.content["sources"]
    shards = [
        shard
        for split in SPLITS
        for shard in [*manifest.split(split), *(renamed[new] for new in addition.split(split))]
    ]
    appended = {
        "hub": more["hub"],
        "files": len(more["files"]),
        "policy": addition.content["policy"],
        "plan_id": plan_id,
    }
    parent = Parent(
        manifest.dataset_id,
        APPEND,
        documents=sum(shard.num_documents for shard in addition.shards),
        tokens=sum(shard.num_tokens for shard in addition.shards),
    )
    audit = read_audit(out, manifest)
    added = Audit(**addition.audit)
    added.copies = {name_copies(out, manifest): sha for sha in added.copies.values()}
    audit.add(added)
    check_conservation(audit)
    find_kind(audit)
    hashes = {new.sidecar: addition.sidecar_sha256(old) for old, new in renamed.items()}
    return manifest.next_version(
        parent,
        shards,
        {name: sha256 for name, sha256 in hashes.items() if sha256},
        audit.content,
        sources=sources | {"files": [*sources["files"], *more["files"]]},
        appended=[*list_appended(manifest), appended],
    )


def rename_shards(out: Path, manifest: Manifest, addition: Manifest) -> dict[Shard, Shard]:
    """The new shards under their final names: the numbering of the units continues.

    It continues after that of every version, so that no name ever means two contents.
    """
    first = number_next(out, manifest)

    def rename(shard: Shard) -> Shard:
        match = NUMBERED.fullmatch(shard.name)
        if match is None:
            raise ValueError(
                f"{append_folder(out)}: {shard.name!r} is no name that prep gives to a shard; "
                "remove that folder and run the same command again"
            )
        return replace(shard, name=f"{match[1]}-{first + int(match[2]):05d}{match[3]}")

    return {shard: rename(shard) for shard in addition.shards}


def number_next(out: Path, manifest: Manifest) -> int:
    """The number of the first unit after those of all versions."""
    known = [shard for version in list_versions(out, manifest) for shard in version.shards]
    matches = [NUMBERED.fullmatch(shard.name) for shard in known]
    return 1 + max((int(match[2]) for match in matches if match), default=-1)


def name_copies(out: Path, manifest: Manifest) -> str:
    """The name that the list of the new sources' near copies gets."""
    return f"copies-{max(number_next(out, manifest), 1):05d}.parquet"


def plan_version(out: Path, manifest: Manifest, addition: Manifest, text: str) -> NextVersion:
    """The moves of the new shards into the set's folder; where they were made is removed."""
    folder = append_folder(out).relative_to(out)
    names: list[Callable[[Shard], str]] = [lambda s: s.sidecar, lambda s: s.name]
    moves = tuple(
        ((folder / name(old)).as_posix(), name(new))
        for old, new in rename_shards(out, manifest, addition).items()
        for name in names
    )
    lists = [(folder / name).as_posix() for name in list_copies(addition.audit)]
    moves += tuple((path, name_copies(out, manifest)) for path in lists)
    return NextVersion(text, moves, deletes=(), clears=(folder.as_posix(),))


def summarize(out: Path, manifest: Manifest) -> list[str]:
    """What was added to the set, and what the set is now."""
    parent = manifest.parent
    assert parent is not None
    return [
        f"{out}: appended {parent.documents:,} documents, {parent.tokens:,} tokens; the set "
        f"now has {manifest.num_tokens('train'):,} train tokens, "
        f"{manifest.num_tokens('validation'):,} validation tokens",
        f"dataset_id {parent.dataset_id} became {manifest.dataset_id}",
    ]
