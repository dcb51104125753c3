"""Later versions of a set on object storage: only what is new travels, and nothing else goes."""

import json
from pathlib import Path
from shutil import copytree

import pytest

from shards.disk.durable import write_file
from shards.disk.lock import lock_set
from shards.edit.remove import Wanted, find_wanted, remove_documents
from shards.exchange.pull import pull_shards
from shards.exchange.push import push_shards
from shards.exchange.storage import open_storage
from shards.format import read_manifest
from shards.reader import open_shards
from tests.servers.s3_server import S3Server
from tests.stored import (
    environment,
    files_of,
    finished_set,
    ignore,
    server,
    url,
)

# Fixtures of all tests of storage.
__all__ = ["environment", "finished_set", "server", "url"]


@pytest.mark.parametrize("keeps_places", [True, False])
def test_a_later_version_takes_the_place_of_an_earlier_one(
    finished_set: Path, tmp_path: Path, url: str, server: S3Server, keeps_places: bool
) -> None:
    """A takedown reaches the bucket and the nodes, and only the changed shards travel."""
    folder = Path(copytree(finished_set, tmp_path / "origin"))
    push_shards(folder, url, ignore, compress=True)
    pull_shards(url, tmp_path / "node", ignore)
    shards = open_shards(folder)
    wanted = Wanted(frozenset(["https://example.com/source/7"]))
    changed = remove_documents(shards, find_wanted(shards, wanted), keeps_places)

    before = len(server.requests("PUT"))
    push_shards(folder, url, ignore)
    sent = {path.rsplit("/", 1)[1] for path in server.requests("PUT")[before:]}
    assert len({name for name in sent if name.endswith(".bin")}) == 1
    names = {name.removesuffix(".zst") for name in open_storage(url).list_files()}
    assert names == set(files_of(folder))

    before = len(server.requests("GET"))
    pull_shards(url, tmp_path / "node", ignore)
    assert len([path for path in server.requests("GET")[before:] if path.endswith(".bin")]) == 1
    assert files_of(tmp_path / "node") == files_of(folder)
    assert read_manifest(tmp_path / "node") == changed
    with pytest.raises(ValueError, match="holds another set"):  # Not back to the earlier one.
        push_shards(finished_set, url, ignore)


def remove_url(folder: Path, number: int, keeps_places: bool = False) -> None:
    """A later version of the set, without one document."""
    shards = open_shards(folder)
    wanted = Wanted(frozenset([f"https://example.com/source/{number}"]))
    remove_documents(shards, find_wanted(shards, wanted), keeps_places)


def test_a_push_sends_the_manifest_that_it_read_at_first(
    finished_set: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.exchange import push

    folder = Path(copytree(finished_set, tmp_path / "origin"))
    complete, before = push.complete, files_of(folder)

    def complete_late(*arguments: object) -> None:
        with pytest.raises(ValueError, match="another velocity command"), lock_set(folder):
            pass
        remove_url(folder, 7)
        complete(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(push, "complete", complete_late)
    push_shards(folder, url, ignore)
    pull_shards(url, tmp_path / "pulled", ignore)
    assert files_of(tmp_path / "pulled") == before


def test_a_version_reaches_places_that_are_two_behind(
    finished_set: Path, tmp_path: Path, url: str
) -> None:
    folder = Path(copytree(finished_set, tmp_path / "origin"))
    push_shards(folder, url, ignore, compress=True)
    for node, split in (("whole", None), ("train", "train")):
        pull_shards(url, tmp_path / node, ignore, split)
    remove_url(folder, 7)
    remove_url(folder, 400)
    push_shards(folder, url, ignore)
    assert {name.removesuffix(".zst") for name in open_storage(url).list_files()} == set(
        files_of(folder)
    )
    pull_shards(url, tmp_path / "whole", ignore)
    assert files_of(tmp_path / "whole") == files_of(folder)
    pull_shards(url, tmp_path / "train", ignore, "train")
    shards = open_shards(tmp_path / "train").manifest.shards
    assert list(shards) == read_manifest(folder).split("train")
    with pytest.raises(ValueError, match="holds another set"):
        pull_shards(url, tmp_path / "train", ignore, "validation")


def test_a_version_goes_on_where_the_push_of_an_earlier_one_was_killed(
    finished_set: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.exchange import push

    folder = Path(copytree(finished_set, tmp_path / "origin"))
    push_shards(folder, url, ignore)
    remove_url(folder, 7)
    with monkeypatch.context() as patch:
        patch.setattr(push, "complete", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            push_shards(folder, url, ignore)
    remove_url(folder, 8)  # In the same shard: what was sent of the version between is no one's.
    push_shards(folder, url, ignore)
    assert set(open_storage(url).list_files()) == set(files_of(folder))


@pytest.mark.parametrize("name", ["../x.bin", "notes.txt", "train-00000-001.bin.zst", 7, None])
def test_an_edited_note_deletes_nothing(finished_set: Path, tmp_path: Path, name: object) -> None:
    storage = open_storage(tmp_path / "set")
    owner = read_manifest(finished_set).dataset_id
    replaced = name if name is None else [name]
    storage.write("upload.json", [json.dumps({"owner": owner, "replaced": replaced}).encode()])
    storage.write("notes.txt", [b"mine"])
    with pytest.raises(ValueError, match=r"upload.json: says that .* is to be deleted, which no"):
        push_shards(finished_set, str(tmp_path / "set"), ignore)
    assert set(storage.list_files()) == {"upload.json", "notes.txt"}


def test_a_killed_push_to_a_plain_folder_leaves_nothing_behind(
    finished_set: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / ".train-00000-000.bin.123.tmp").write_bytes(b"half")
    (folder / ".mine.123.tmp").write_bytes(b"mine")
    push_shards(finished_set, str(folder), ignore)
    assert set(files_of(folder)) == {*files_of(finished_set), ".mine.123.tmp"}


def test_a_pull_takes_no_place_of_others(finished_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("mine")
    with pytest.raises(ValueError, match=r"tokenizer.json: already exists and is not this set's"):
        pull_shards(str(finished_set), folder, ignore)
    assert files_of(folder) == {"tokenizer.json": b"mine"}


def test_a_pull_waits_for_no_version_that_is_being_made(finished_set: Path, tmp_path: Path) -> None:
    folder = Path(copytree(finished_set, tmp_path / "node"))
    work = folder / ".prep" / "version"
    with lock_set(folder):
        work.mkdir()
        with pytest.raises(
            ValueError,
            match=r"another velocity command is changing this set \(.*, process \d+, since",
        ):
            pull_shards(str(finished_set), folder, ignore)
        assert work.exists()


def test_a_killed_pull_of_an_earlier_version_leaves_no_shards(
    finished_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.exchange import pull

    origin = Path(copytree(finished_set, tmp_path / "origin"))
    with monkeypatch.context() as patch:
        patch.setattr(pull, "write_file", stop_at_manifest)
        with pytest.raises(OSError, match="killed"):
            pull_shards(str(origin), tmp_path / "node", ignore)
    remove_url(origin, 7)
    pull_shards(str(origin), tmp_path / "node", ignore)
    assert files_of(tmp_path / "node") == files_of(origin)


def stop_at_manifest(path: Path, content: str) -> None:
    if path.name == "manifest.json":
        raise OSError("killed")
    write_file(path, content)
