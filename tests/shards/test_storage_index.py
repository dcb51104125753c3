"""A set's index on object storage: carried when asked for, whole, and of the set's version."""

import signal
import time
from pathlib import Path
from shutil import copytree

import pytest

from shards.disk.layout import INDEX, index_folder, index_path, list_arrays
from shards.edit.remove import Wanted, find_wanted, remove_documents
from shards.exchange import arrays
from shards.exchange.pull import pull_shards
from shards.exchange.push import push_shards
from shards.exchange.storage import open_storage
from shards.index.build import build_index
from shards.index.passages import Finder, Wish
from shards.index.search import open_index
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.commands import velocity
from tests.servers.forked import Forked
from tests.servers.held import hold_after
from tests.servers.s3_server import S3Server
from tests.stored import environment, flip_byte, ignore, server, url
from tests.texts import make_texts
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_set

# Fixtures of all tests of storage.
__all__ = ["environment", "server", "url"]

TEXTS = make_texts(60)
ARRAY_TOKENS = 400


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with many arrays."""
    folder = tmp_path_factory.mktemp("indexed") / "set"
    write_set(folder, TOKENIZER_JSON, TEXTS, "<|endoftext|>", shard_tokens=3000)
    build_index(folder, ignore, array_tokens=ARRAY_TOKENS)
    assert len(list_arrays(folder)) > 20
    return folder


@pytest.fixture
def share(tmp_path: Path) -> str:
    """A plain folder that stands for a URL."""
    return str(tmp_path / "share")


def index_of(folder: Path) -> dict[str, bytes]:
    """The files of a set's index."""
    return {path.name: path.read_bytes() for path in index_folder(folder).iterdir()}


def remote_index(url: str) -> set[str]:
    """The files of the index at a URL."""
    return set(open_storage(url).inside(INDEX).list_files())


@pytest.mark.parametrize("is_plain", [False, True])
def test_an_index_is_carried_where_it_is_asked_for(
    indexed: Path, tmp_path: Path, url: str, is_plain: bool
) -> None:
    place = str(tmp_path / "share") if is_plain else url
    push_shards(indexed, place, ignore)
    assert remote_index(place) == set()
    with pytest.raises(ValueError, match="has no index; push it with --index, or pull without it"):
        pull_shards(place, tmp_path / "pulled", ignore, with_index=True)
    assert not (tmp_path / "pulled").exists()
    if is_plain:  # What a killed push left, and what is somebody else's.
        inner = index_folder(Path(place))
        inner.mkdir()
        old = f".{list_arrays(indexed)[0].name}.4711.tmp"
        (inner / old).write_bytes(b"half")
        (inner / "notes.sa").write_bytes(b"mine")
    code, _, errors = velocity("shards", "push", indexed, place, "--index")
    assert code == 0
    num_arrays = len(list_arrays(indexed))
    assert f"{num_arrays} arrays are there, {num_arrays} of them sent now" in errors
    assert remote_index(place) - {"notes.sa"} == set(index_of(indexed))
    code, _, errors = velocity("shards", "pull", place, tmp_path / "pulled", "--index")
    assert code == 0
    assert f"{num_arrays} arrays are whole, {num_arrays} of them fetched now" in errors
    assert index_of(tmp_path / "pulled") == index_of(indexed)
    assert not (tmp_path / "pulled" / ".pull").exists()
    pull_shards(place, tmp_path / "without", ignore)
    assert not index_folder(tmp_path / "without").exists()


def test_a_part_gets_the_arrays_of_its_shards(indexed: Path, tmp_path: Path, share: str) -> None:
    push_shards(indexed, share, ignore, with_index=True)
    folder = tmp_path / "train"
    manifest = pull_shards(share, folder, ignore, split="train", with_index=True)
    own = {path.name for path in list_arrays(folder)}
    assert own == {p.name for p in list_arrays(indexed) if p.name.startswith("train")}
    assert {part.split for part in open_index(open_shards(folder)).parts} == {"train"}
    [first, *_] = [n for n in range(len(TEXTS)) if n % 10 != 7]
    [found, *_] = Finder(open_shards(folder)).find(TEXTS[first], Wish())
    assert f"https://example.com/{first}" in {p.document.url for p in found.places}
    assert [fault for _, fault in verify_shards(folder) if fault] == []
    _, written, _ = velocity("shards", "info", folder)
    assert f"index       of this version, {len(own)} arrays, " in written
    _, written, _ = velocity("inspect", folder)
    assert f"of this version, {len(own)} arrays, " in written
    # In the part's own words: its index.json is not that of the whole set.
    assert manifest.dataset_id in index_path(folder).read_text()


def count_files(folder: Path) -> int:
    """How many files a set has beside its manifest."""
    return sum(path.is_file() for path in folder.iterdir()) - 1


def test_a_killed_push_of_an_index_goes_on(indexed: Path, url: str, server: S3Server) -> None:
    hold = hold_after("shards.exchange.send", "send_file", count_files(indexed) + 7)
    command = ["velocity", "shards", "push", indexed, url, "--index", "--workers", "1"]
    process = Forked(command, setup=hold)
    inner = open_storage(url).inside(INDEX)
    while process.poll() is None and len(inner.list_files()) < 5:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = set(inner.list_files())
    assert 5 <= len(there) < len(list_arrays(indexed))
    assert "index.json" not in there
    before = len(server.requests("PUT"))
    push_shards(indexed, url, ignore, with_index=True)
    sent = {path.rsplit("/", 1)[1] for path in server.requests("PUT")[before:]}
    assert sent & set(index_of(indexed)) == set(index_of(indexed)) - there
    assert not [name for name in sent if name.endswith((".bin", ".parquet"))]


def test_a_killed_pull_of_an_index_goes_on(
    indexed: Path, tmp_path: Path, url: str, server: S3Server
) -> None:
    push_shards(indexed, url, ignore, with_index=True)
    folder = tmp_path / "pulled"
    hold = hold_after("shards.exchange.fetch", "fetch_file", count_files(indexed) + 6)
    command = ["velocity", "shards", "pull", url, folder, "--index", "--workers", "1"]
    process = Forked(command, setup=hold)
    while process.poll() is None and len(list_arrays(folder)) < 5:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    whole = index_of(folder)
    assert 5 <= len(whole) < len(list_arrays(indexed))
    assert whole.items() <= index_of(indexed).items()
    # The set is complete, without an index so far.
    _, written, _ = velocity("shards", "info", folder)
    assert "index       none" in written
    before = len(server.requests("GET"))
    pull_shards(url, folder, ignore, with_index=True)
    fetched = {path.rsplit("/", 1)[1] for path in server.requests("GET")[before:] if "/" in path}
    assert {name for name in fetched if name.endswith(".sa")} == set(index_of(indexed)) - {
        *whole,
        "index.json",
    }
    assert index_of(folder) == index_of(indexed)


def test_damage_is_named_and_never_used(indexed: Path, tmp_path: Path, share: str) -> None:
    damaged = Path(copytree(indexed, tmp_path / "damaged"))
    path = list_arrays(damaged)[3]
    path.write_bytes(flip_byte(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name}: its sha256 is not index\.json's, so it"):
        push_shards(damaged, share, ignore, with_index=True)
    assert "index.json" not in remote_index(share)
    code, written, errors = velocity("shards", "verify", damaged)
    assert code == 1
    assert f"{path}: its sha256 is not index.json's" in written
    assert "are damaged; only the index is; make what is damaged again with: velocity sh" in errors
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name}: is missing, or has the wrong size; make"):
        push_shards(damaged, share, ignore, with_index=True)
    _, written, _ = velocity("shards", "info", damaged)
    assert f"but {path.name} is missing or cut short, one of 1; make it with" in written
    # What is missing or damaged is made again.
    other = list_arrays(damaged)[5]
    other.write_bytes(flip_byte(other.read_bytes()))
    build_index(damaged, ignore, array_tokens=ARRAY_TOKENS)
    assert index_of(damaged) == index_of(indexed)

    push_shards(indexed, share, ignore, with_index=True)
    inner = open_storage(share).inside(INDEX)
    inner.write(path.name, [flip_byte(inner.read_bytes(path.name))])
    with pytest.raises(ValueError, match=r"its sha256 is not index\.json's .one of 1 damaged"):
        pull_shards(share, tmp_path / "pulled", ignore, with_index=True)
    assert not (index_folder(tmp_path / "pulled") / path.name).exists()
    assert not index_path(tmp_path / "pulled").exists()
    inner.delete(path.name)
    with pytest.raises(ValueError, match=f"{path.name}: is missing there, or cut short; push it"):
        pull_shards(share, tmp_path / "early", ignore, with_index=True)
    text = inner.read_bytes("index.json")
    inner.write("index.json", [text.replace(b'"first": 0', b'"first": 1', 1)])
    with pytest.raises(ValueError, match=r"index\.json: was edited or damaged; push it with"):
        pull_shards(share, tmp_path / "early", ignore, with_index=True)
    assert not (tmp_path / "early").exists()
    push_shards(indexed, share, ignore, with_index=True)  # Pushing again mends both.
    pull_shards(share, tmp_path / "pulled", ignore, with_index=True)
    assert index_of(tmp_path / "pulled") == index_of(indexed)


def test_a_new_version_takes_the_arrays_of_what_was_removed_from_the_url(
    indexed: Path, tmp_path: Path, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(copytree(indexed, tmp_path / "set"))
    push_shards(folder, share, ignore, with_index=True)
    before = remote_index(share)
    found = find_wanted(open_shards(folder), Wanted(frozenset({"https://example.com/20"})))
    changed = found[0].shard.name
    remove_documents(open_shards(folder), found, keeps_places=True)
    with pytest.raises(ValueError, match="is for the version"):
        push_shards(folder, share, ignore, with_index=True)
    # Nor does verify read what is not used any more, or info call it this version's.
    assert not [name for name, _ in verify_shards(folder) if name.startswith(INDEX)]
    _, written, _ = velocity("shards", "info", folder)
    assert "index       none of this version: " in written
    push_shards(folder, share, ignore)
    left = remote_index(share)
    assert before - left == {name for name in before if name.startswith(f"{changed}.")} != set()
    with pytest.raises(ValueError, match="is for the version"):
        pull_shards(share, tmp_path / "pulled", ignore, with_index=True)
    build_index(folder, ignore, array_tokens=ARRAY_TOKENS)
    with monkeypatch.context() as patch:  # While arrays change, there is no index.json.
        patch.setattr(arrays, "send_all", lambda *arguments: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            push_shards(folder, share, ignore, with_index=True)
        assert "index.json" not in remote_index(share)
    push_shards(folder, share, ignore, with_index=True)
    assert remote_index(share) == set(index_of(folder))
    # A node that has the version before, and an index of its own: it becomes this one.
    node = Path(copytree(indexed, tmp_path / "node"))
    build_index(node, ignore, array_tokens=2 * ARRAY_TOKENS)
    pull_shards(share, node, ignore, with_index=True)
    assert index_of(node) == index_of(folder)
    assert [fault for _, fault in verify_shards(node) if fault] == []
