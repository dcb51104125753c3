"""What an import finds in its folder: its own set, what a stopped one left, or other files."""

import re
from pathlib import Path

from prep.foreign.files import ForeignFile
from prep.foreign.request import ImportRequest
from prep.tokenizer.identity import SetTokenizer
from shards.disk.durable import hash_file, sync_folder
from shards.disk.folders import remove
from shards.disk.json_files import Json, load_json
from shards.disk.layout import (
    MANIFEST,
    TOKENIZER,
    import_folder,
    import_names_path,
    plan_path,
    work_folder,
)
from shards.format import SPLITS, Manifest, read_manifest

# The files that an import makes.
OWN_NAME = re.compile(
    rf"({'|'.join(SPLITS)})-00000(-\d+)?\.(bin|docs\.parquet)|{re.escape(TOKENIZER)}"
)
NO_NAME = re.compile(r"(?!)")


def refuse_taken(
    out: Path, request: ImportRequest, files: list[ForeignFile], tokenizer: SetTokenizer
) -> None:
    """ValueError if the folder holds what an import would overwrite."""
    if (out / MANIFEST).exists():
        if not is_made_of(read_manifest(out), request, files, tokenizer):
            raise ValueError(
                f"{out}: already holds a set, made of other files or with other options; "
                "choose another --out"
            )
        return
    if plan_path(out).exists():
        raise ValueError(
            f"{out}: holds the unfinished set of a velocity prep; choose another --out"
        )
    # What a stopped import may have put there is compared once it is made again.
    maybe_ours = OWN_NAME if work_folder(out).is_dir() else NO_NAME
    refuse_files(out, [name for name in find_files_there(out) if not maybe_ours.fullmatch(name)])


def is_made_of(
    manifest: Manifest, request: ImportRequest, files: list[ForeignFile], tokenizer: SetTokenizer
) -> bool:
    """Whether a set is what this request made, as far as can be told without reading all."""
    marks = (manifest.end_of_text, manifest.begin_of_text)
    sha256 = manifest.content["tokenizer"]["sha256"]
    if (sha256, *marks) != (tokenizer.sha256, tokenizer.end_of_text, tokenizer.begin_of_text):
        return False
    sources = [(file["name"], file["num_bytes"]) for file in manifest.content["sources"]["files"]]
    return manifest.content["policy"] == describe_policy(request, files) and sources == [
        (name, path.stat().st_size) for name, path in list_sources(files)
    ]


def find_files_there(out: Path) -> list[str]:
    """The files in a folder that look like a set's, but for the manifest."""
    found = {path.name for end in ("bin", "docs.parquet") for path in out.glob(f"*.{end}")}
    return sorted(found | ({TOKENIZER} if (out / TOKENIZER).exists() else set()))


def refuse_files(out: Path, names: list[str]) -> None:
    """ValueError if there are files that an import did not put there."""
    if names:
        raise ValueError(
            f"{out / names[0]}: already exists; nothing is overwritten, so choose another --out"
        )


def clear_leftovers(out: Path) -> None:
    """Remove what a killed import left; behind the manifest, only where it worked."""
    remove(import_folder(out))
    path = import_names_path(out)
    if not path.exists():
        return
    noted = load_json(path).get("files", {})  # Earlier releases noted no sha256.
    if not isinstance(noted, dict) or not all(
        OWN_NAME.fullmatch(name) and isinstance(sha256, str) for name, sha256 in noted.items()
    ):
        raise ValueError(
            f"{path}: does not list files of an import, each with its sha256; it was edited or "
            "damaged, so remove it and run the same command again"
        )
    if not (out / MANIFEST).exists():
        for name, sha256 in noted.items():
            if (out / name).is_file() and hash_file(out / name) == sha256:
                (out / name).unlink()
        sync_folder(out)
    path.unlink()
    sync_folder(path.parent)


def list_sources(files: list[ForeignFile]) -> list[tuple[str, Path]]:
    """The name and path of each file that is read, indexes included, in order."""
    named = []
    for file in files:
        named.append((file.name, file.path))
        if file.index is not None:
            named.append((file.index_name, file.index_path))
    return named


def describe_policy(request: ImportRequest, files: list[ForeignFile]) -> Json:
    """What was asked for, as the manifest has it."""
    return {
        "imported": ", ".join(sorted({file.format for file in files})),
        "validation_files": [file.name for file in files if file.split == "validation"],
        "validation_fraction": request.validation_fraction,
        "shard_tokens": request.shard_tokens,
        "add_end_of_text": request.add_end_of_text,
    }
