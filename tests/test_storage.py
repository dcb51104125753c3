"""Sets on object storage: what comes back is what was sent, or it does not come back at all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree
from threading import Thread

import pytest

from shards import transfer
from shards.durable import write_file
from shards.format import hash_canonical, read_manifest
from shards.packing import DamagedError, pack, unpack
from shards.part import Part, parse_part
from shards.pull import pull_shards
from shards.push import push_shards
from shards.reader import open_shards
from shards.remove import Wanted, find_documents, remove_documents
from shards.storage import open_storage
from shards.url import restore_url, show_url
from shards.verify import verify_shards
from shards.versions import lock_set
from tests.s3_server import S3Server, run_s3_server
from tests.texts import make_texts, prepare_quietly, write_parquet

BUCKET = "sets"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with run_s3_server(tmp_path_factory.mktemp("s3"), BUCKET) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is found as users name one, and retries do not wait."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 shards: 22 of train, 3 of validation."""
    folder = tmp_path_factory.mktemp("set")
    source = write_parquet(folder / "source.parquet", [*make_texts(1500)])
    prepare_quietly(folder / "shards", source, shard_tokens=5000, validation_fraction="0.1")
    return folder / "shards"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A folder of the bucket that no other test uses."""
    return f"s3://{BUCKET}/{tmp_path.name}"


def ignore(line: str) -> None:
    """What the commands say goes nowhere."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def change_object(url: str, name: str, change: object) -> None:
    assert callable(change)
    storage = open_storage(url)
    storage.write(name, [change(storage.read_bytes(name))])


def flip_byte(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def run_command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_pushed_is_pulled_byte_for_byte(
    finished_set: Path, tmp_path: Path, url: str, compress: bool
) -> None:
    push_shards(finished_set, url, ignore, compress)
    names = set(open_storage(url).list_files())
    ending = ".bin.zst" if compress else ".bin"
    assert {
        f"{shard.name.removesuffix('.bin')}{ending}" for shard in read_shards(finished_set)
    } == {name for name in names if ".bin" in name}
    pull_shards(url, tmp_path / "pulled", ignore)
    assert files_of(tmp_path / "pulled") == files_of(finished_set)
    assert [path.name for path in (tmp_path / "pulled").iterdir() if path.is_dir()] == []


def read_shards(folder: Path) -> list[object]:
    return list(read_manifest(folder).shards)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_plain_folder_is_a_url_too(finished_set: Path, tmp_path: Path, scheme: str) -> None:
    where = f"{scheme}{tmp_path}/share/set"
    push_shards(finished_set, where, ignore, compress=True)
    pull_shards(where, tmp_path / "pulled", ignore)
    assert files_of(tmp_path / "pulled") == files_of(finished_set)


def test_the_endpoint_may_stand_in_the_url(
    finished_set: Path, tmp_path: Path, url: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    where = f"{url}?scheme=http&endpoint_override={server.address}"
    push_shards(finished_set, where, ignore)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{server.address}")
    said: list[str] = []
    pull_shards(url, tmp_path / "pulled", said.append)
    assert said[0].startswith(f"{url}: 25 shards, ")


@pytest.mark.parametrize("compress", [False, True])
def test_a_killed_pull_goes_on_and_fetches_no_whole_file_again(
    finished_set: Path, tmp_path: Path, url: str, server: S3Server, compress: bool
) -> None:
    push_shards(finished_set, url, ignore, compress)
    folder = tmp_path / "pulled"
    command = [sys.executable, "-m", "cli", "shards", "pull", url, str(folder), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(folder.glob("*.bin"))) < 8:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    with pytest.raises(ValueError, match="pull has not finished here"):
        open_shards(folder)

    whole = {path.name for path in folder.iterdir() if path.is_file()}
    assert 8 <= len([name for name in whole if name.endswith(".bin")]) < 25
    before = len(server.requests("GET"))
    assert run_command("shards", "pull", url, folder).returncode == 0
    fetched = {path.rsplit("/", 1)[1] for path in server.requests("GET")[before:] if "/" in path}
    assert {name.removesuffix(".zst") for name in fetched} == (
        set(files_of(finished_set)) - whole | {"manifest.json"}
    )
    assert files_of(folder) == files_of(finished_set)


def test_a_killed_push_goes_on_and_sends_no_whole_file_again(
    finished_set: Path, tmp_path: Path, url: str, server: S3Server
) -> None:
    command = [sys.executable, "-m", "cli", "shards", "push", str(finished_set), url]
    command += ["--compress", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    storage = open_storage(url)
    while process.poll() is None and len(storage.list_files()) < 10:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = set(storage.list_files())
    assert 10 <= len(there) < 50
    with pytest.raises(ValueError, match="upload of this set has not finished"):
        pull_shards(url, tmp_path / "early", ignore)

    before = len(server.requests("PUT"))
    push_shards(finished_set, url, ignore, compress=True)
    sent = {path.rsplit("/", 1)[1] for path in server.requests("PUT")[before:]}
    assert not sent & there
    assert "upload.json" not in storage.list_files()
    pull_shards(url, tmp_path / "pulled", ignore)
    assert files_of(tmp_path / "pulled") == files_of(finished_set)


@pytest.mark.parametrize("name", ["train-00000-003.bin", "train-00000-003.docs.parquet"])
@pytest.mark.parametrize("compress", [False, True])
def test_a_flipped_byte_is_named_and_never_used(
    finished_set: Path, tmp_path: Path, url: str, name: str, compress: bool
) -> None:
    push_shards(finished_set, url, ignore, compress)
    stored = f"{name}.zst" if compress and name.endswith(".bin") else name
    change_object(url, stored, flip_byte)
    folder = tmp_path / "pulled"
    with pytest.raises(ValueError, match=f"{url}/{stored}: .*one of 1 damaged files"):
        pull_shards(url, folder, ignore)
    assert set(files_of(finished_set)) - set(files_of(folder)) == {name, "manifest.json"}

    change_object(url, stored, flip_byte)  # Mended there: the same command ends it.
    pull_shards(url, folder, ignore)
    assert files_of(folder) == files_of(finished_set)


def test_an_object_that_is_cut_short_or_too_long_is_named(
    finished_set: Path, tmp_path: Path, url: str
) -> None:
    push_shards(finished_set, url, ignore, compress=True)
    change_object(url, "train-00000-002.bin.zst", lambda content: content[:-2000])
    with pytest.raises(ValueError, match=r"002.bin.zst: has [\d,]+ bytes; expected"):
        pull_shards(url, tmp_path / "short", ignore)
    bomb = tmp_path / "bomb"
    bomb.write_bytes(bytes(100 << 20))
    storage = open_storage(url)
    storage.write("train-00000-002.bin.zst", pack(bomb, "00" * 32))
    with pytest.raises(ValueError, match=r"002.bin.zst: has more than [\d,]+ bytes; expected"):
        pull_shards(url, tmp_path / "long", ignore)
    storage.write("train-00000-002.bin.zst", [b"no zstd at all"])
    with pytest.raises(ValueError, match=r"002.bin.zst: cannot be unpacked"):
        pull_shards(url, tmp_path / "other", ignore)


def test_a_missing_object_is_named_before_anything_is_fetched(
    finished_set: Path, tmp_path: Path, url: str
) -> None:
    push_shards(finished_set, url, ignore)
    open_storage(url).delete("train-00000-004.bin")
    with pytest.raises(ValueError, match=r"004.bin: is missing there, one of 1 files"):
        pull_shards(url, tmp_path / "pulled", ignore)
    assert not (tmp_path / "pulled").exists()
    push_shards(finished_set, url, ignore)  # Pushing again mends it.
    pull_shards(url, tmp_path / "pulled", ignore)


def test_pulling_again_mends_a_damaged_set(finished_set: Path, tmp_path: Path, url: str) -> None:
    push_shards(finished_set, url, ignore)
    folder = Path(copytree(finished_set, tmp_path / "copy"))
    (folder / "train-00000-001.bin").write_bytes(
        flip_byte((folder / "train-00000-001.bin").read_bytes())
    )
    (folder / "train-00000-002.docs.parquet").unlink()
    said: list[str] = []
    pull_shards(url, folder, said.append)
    assert "51 files are whole, 2 of them fetched now" in said[1]
    assert files_of(folder) == files_of(finished_set)


def test_parts_are_sets_of_their_own_and_make_up_the_whole(
    finished_set: Path, tmp_path: Path, url: str
) -> None:
    push_shards(finished_set, url, ignore)
    whole = read_manifest(finished_set)
    names: list[str] = []
    for index in range(3):
        folder = tmp_path / str(index)
        manifest = pull_shards(url, folder, ignore, part=Part(index, 3))
        assert manifest == read_manifest(folder)
        assert manifest.content["parent"] == {
            "dataset_id": whole.dataset_id,
            "change": "part",
            "part": f"{index}/3",
        }
        assert manifest.dataset_id != whole.dataset_id
        assert [fault for _, fault in verify_shards(folder) if fault] == []
        stream = open_shards(folder).stream("train")
        assert len(stream.read(0, stream.num_tokens)) == manifest.num_tokens("train") > 0
        names += [shard.name for shard in manifest.shards]
    assert sorted(names) == sorted(shard.name for shard in whole.shards)


def test_one_split_keeps_its_order_and_says_so(
    finished_set: Path, tmp_path: Path, url: str
) -> None:
    push_shards(finished_set, url, ignore)
    whole = read_manifest(finished_set)
    manifest = pull_shards(url, tmp_path / "validation", ignore, split="validation")
    assert manifest.shards == whole.split("validation")
    assert manifest.same_places == [whole.dataset_id]
    assert pull_shards(url, tmp_path / "t", ignore, "train").shards == whole.split("train")
    with pytest.raises(ValueError, match="--split is 'test'; expected one of train, validation"):
        pull_shards(url, tmp_path / "none", ignore, split="test")
    with pytest.raises(ValueError, match="22 train, 3 validation shards, so nothing is"):
        pull_shards(url, tmp_path / "none", ignore, "validation", Part(5, 9))


@pytest.mark.parametrize("text", ["3", "1/0", "2/2", "-1/2", "a/b"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"--part is {text}; expected i/n with i from 0"):
        parse_part(text)


def test_no_set_is_written_over(finished_set: Path, tmp_path: Path, url: str) -> None:
    push_shards(finished_set, url, ignore)
    pull_shards(url, tmp_path / "part", ignore, part=Part(0, 2))
    with pytest.raises(ValueError, match=r"holds another set .* choose a new folder"):
        pull_shards(url, tmp_path / "part", ignore)
    with pytest.raises(ValueError, match=r"holds another set .* choose another URL"):
        push_shards(tmp_path / "part", url, ignore)
    storage = open_storage(f"{url}/foreign")
    storage.write("train-00000.bin", [b"other"])
    with pytest.raises(ValueError, match=r"holds a file train-00000.bin of another origin"):
        push_shards(finished_set, f"{url}/foreign", ignore)
    (tmp_path / "unfinished" / ".prep").mkdir(parents=True)
    with pytest.raises(ValueError, match="velocity prep is making a set there"):
        pull_shards(url, tmp_path / "unfinished", ignore)


def test_a_damaged_file_is_not_pushed(finished_set: Path, tmp_path: Path, url: str) -> None:
    folder = Path(copytree(finished_set, tmp_path / "copy"))
    path = folder / "train-00000-001.bin"
    path.write_bytes(flip_byte(path.read_bytes()))
    with pytest.raises(ValueError, match=r"001.bin: its sha256 is not the manifest's, so it is"):
        push_shards(folder, url, ignore)
    assert "manifest.json" not in open_storage(url).list_files()


def test_an_edited_manifest_or_one_that_leads_elsewhere_is_refused(
    finished_set: Path, tmp_path: Path, url: str
) -> None:
    push_shards(finished_set, url, ignore)
    raw = json.loads((finished_set / "manifest.json").read_text())
    raw["content"]["shards"][0]["name"] = "../../evil.bin"
    storage = open_storage(url)
    storage.write("manifest.json", [json.dumps(raw).encode()])
    with pytest.raises(ValueError, match=f"{url}/manifest.json: its content does not hash"):
        pull_shards(url, tmp_path / "pulled", ignore)
    raw["dataset_id"] = hash_canonical(raw["content"])
    storage.write("manifest.json", [json.dumps(raw).encode()])
    with pytest.raises(ValueError, match="is no shard's name"):
        pull_shards(url, tmp_path / "pulled", ignore)
    assert not (tmp_path / "pulled").exists()


def test_passing_faults_are_survived_and_lasting_ones_told(
    finished_set: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards import pull
    from shards.storage import StorageError

    push_shards(finished_set, url, ignore)
    copy_file, faults = pull.copy_file, iter(range(10))

    def copy_with_faults(*arguments: object) -> str | None:
        if next(faults, None) is not None:
            raise StorageError("the line was cut")
        return copy_file(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pull, "copy_file", copy_with_faults)
    pull_shards(url, tmp_path / "pulled", ignore)
    assert files_of(tmp_path / "pulled") == files_of(finished_set)

    monkeypatch.setattr(pull, "copy_file", lambda *_: (_ for _ in ()).throw(StorageError("cut")))
    with pytest.raises(StorageError, match="cut"):
        pull_shards(url, tmp_path / "again", ignore)


def test_a_full_disk_is_noticed_before_the_start(
    finished_set: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards import pull

    push_shards(finished_set, url, ignore)
    usage = pull.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(pull.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=r"MB are to come and 1 KB are free; free some"):
        pull_shards(url, tmp_path / "pulled", ignore)


def test_places_without_a_set_say_what_they_are(finished_set: Path, tmp_path: Path) -> None:
    missing = f"s3://{BUCKET}/nothing/here"
    with pytest.raises(ValueError, match=f"{missing}: no manifest.json there .nothing is"):
        pull_shards(missing, tmp_path / "a", ignore)
    with pytest.raises(ValueError, match="s3://no-such-one/set: there is no such bucket; check"):
        pull_shards("s3://no-such-one/set", tmp_path / "a", ignore)
    with pytest.raises(ValueError, match="s3://no-such-one/set: there is no such bucket; check"):
        push_shards(finished_set, "s3://no-such-one/set", ignore)
    with pytest.raises(ValueError, match="s3://: names no bucket; expected such as s3://bucket"):
        pull_shards("s3://", tmp_path / "a", ignore)
    with pytest.raises(ValueError, match="https://host/set: is no URL of a folder"):
        pull_shards("https://host/set", tmp_path / "a", ignore)


class Denier(BaseHTTPRequestHandler):
    """Answers as S3 does where credentials are missing or wrong."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_without_credentials_one_line_says_what_to_set(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Denier) as denier:
        Thread(target=denier.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{denier.server_port}"
        keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(tmp_path)}
        url = f"s3://{BUCKET}/set"
        process = run_command("shards", "pull", url, tmp_path, AWS_ENDPOINT_URL=endpoint, **keys)
        denier.shutdown()
    assert process.returncode == 1
    assert process.stderr.startswith(f"velocity: {url}: access is denied (")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in process.stderr
    assert process.stderr.count("\n") == 1


def test_commands_on_local_sets_say_how_to_bring_one_there() -> None:
    wanted = "velocity shards pull s3://bucket/web web/ and name web/ instead"
    for command in (["shards", "info"], ["shards", "verify"], ["shards", "show"]):
        process = run_command(*command, "s3://bucket/web")
        assert process.returncode == 1
        assert wanted in process.stderr
    with pytest.raises(ValueError, match=wanted):
        open_shards("s3://key:secret@bucket/web/")


def test_urls_are_shown_without_what_is_secret() -> None:
    assert show_url("s3://key:se/c@ret@bucket/set?region=x") == "s3://bucket/set"
    assert show_url("gs://anonymous@bucket/set@2/") == "gs://bucket/set@2"
    assert restore_url(Path("s3://bucket/a/b")) == "s3://bucket/a/b"


def test_a_packed_file_ends_with_what_it_unpacks_to(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(range(256)) * 100_000)
    packed = b"".join(pack(path, "ab" * 32))
    assert packed.endswith(b"\xab" * 32)
    (tmp_path / "x.bin.zst").write_bytes(packed)
    with open(tmp_path / "x.bin.zst", "rb") as file:
        assert b"".join(unpack(file)) == path.read_bytes()
    (tmp_path / "x.bin.zst").write_bytes(packed[:50] + bytes([packed[50] ^ 255]) + packed[51:])
    with open(tmp_path / "x.bin.zst", "rb") as file, pytest.raises(DamagedError):
        list(unpack(file))


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
    changed = remove_documents(shards, find_documents(shards, wanted), keeps_places)

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


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Text of six units."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(6):
        write_parquet(folder / f"{number}.parquet", [*make_texts(400, seed=number)])
    return folder


def prep_to(url: str, source: Path, staging: Path, *options: object) -> list[str]:
    """The command that makes a set of `source` at `url`."""
    command = [sys.executable, "-m", "cli", "prep", "--out", url, "--staging", str(staging)]
    command += ["--input", str(source), "--validation-fraction", "0.1", "--unit-bytes", "20000"]
    return [*command, "--workers", "1", *map(str, options)]


def test_prep_sends_what_it_commits_and_goes_on_after_a_kill(
    source: Path, tmp_path: Path, url: str, server: S3Server
) -> None:
    staging = tmp_path / "staging"
    command = prep_to(url, source, staging, "--compress")
    slow = [sys.executable, "-c", SLOW_PREP, *command[3:]]
    process = subprocess.Popen(slow, stderr=subprocess.DEVNULL)
    storage = open_storage(url)
    while process.poll() is None and len(storage.list_files()) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = set(storage.list_files())
    assert "manifest.json" not in there
    assert not (staging / "manifest.json").exists()

    before = len(server.requests("PUT"))
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    sent = [path.rsplit("/", 1)[1] for path in server.requests("PUT")[before:]]
    sent = [name for name in sent if name]  # pyarrow leaves a folder's mark where it deletes.
    assert not set(sent) & there
    assert sorted(sent) == sorted(set(sent))
    assert sent[-1] == "manifest.json"
    assert "upload.json" not in storage.list_files()
    assert any(name.endswith(".bin.zst") for name in storage.list_files())
    manifest = pull_shards(url, tmp_path / "pulled", ignore)
    straight = prepare_quietly(
        tmp_path / "straight", source, validation_fraction="0.1", unit_bytes=20000
    )
    assert manifest.dataset_id == straight.dataset_id
    assert files_of(tmp_path / "pulled") == files_of(staging)


# Units that take a while, so that shards are sent before the set is finished.
SLOW_PREP = """
import time, cli, prep.engine, prep.upload
process_unit = prep.engine.process_unit
prep.engine.process_unit = lambda *a, **k: (time.sleep(0.7), process_unit(*a, **k))[1]
prep.upload.LOOK_SECONDS = 0.1
cli.main()
"""


def test_what_is_not_final_is_sent_when_the_set_is_finished(
    source: Path, tmp_path: Path, url: str
) -> None:
    command = prep_to(url, source, tmp_path / "staging", "--max-documents", 900, "--dedup", "exact")
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pull_shards(url, tmp_path / "pulled", ignore)
    assert files_of(tmp_path / "pulled") == files_of(tmp_path / "staging")


def test_prep_asks_the_storage_before_it_begins(
    finished_set: Path, source: Path, tmp_path: Path, url: str
) -> None:
    wanted = "s3://no-such-one/set: there is no such bucket"
    push_shards(finished_set, url, ignore)
    for place, message in ((url, "holds a finished set"), ("s3://no-such-one/set", wanted)):
        run = subprocess.run(
            prep_to(place, source, tmp_path / "staging"), capture_output=True, text=True
        )
        assert run.returncode == 1
        assert message in run.stderr
        assert not (tmp_path / "staging").exists()
    run = run_command("prep", "--out", tmp_path / "local", "--input", source, "--compress")
    assert "--compress is for an --out that is a URL" in run.stderr


def remove_url(folder: Path, number: int, keeps_places: bool = False) -> None:
    """A later version of the set, without one document."""
    shards = open_shards(folder)
    wanted = Wanted(frozenset([f"https://example.com/source/{number}"]))
    remove_documents(shards, find_documents(shards, wanted), keeps_places)


def test_a_push_sends_the_manifest_that_it_read_at_first(
    finished_set: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards import push

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
    assert open_shards(tmp_path / "train").manifest.shards == read_manifest(folder).split("train")
    with pytest.raises(ValueError, match="holds another set"):
        pull_shards(url, tmp_path / "train", ignore, "validation")


def test_a_version_goes_on_where_the_push_of_an_earlier_one_was_killed(
    finished_set: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards import push

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
    with pytest.raises(ValueError, match=r"tokenizer.json: is there already and no file of this"):
        pull_shards(str(finished_set), folder, ignore)
    assert files_of(folder) == {"tokenizer.json": b"mine"}


def test_a_pull_waits_for_no_version_that_is_being_made(finished_set: Path, tmp_path: Path) -> None:
    folder = Path(copytree(finished_set, tmp_path / "node"))
    work = folder / ".prep" / "version"
    with lock_set(folder):
        work.mkdir()
        with pytest.raises(ValueError, match="another velocity command is changing this set"):
            pull_shards(str(finished_set), folder, ignore)
        assert work.exists()


def test_a_killed_pull_of_an_earlier_version_leaves_no_shards(
    finished_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards import pull

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


def test_prep_names_the_url_in_what_is_to_be_run_next(
    finished_set: Path, source: Path, tmp_path: Path, url: str
) -> None:
    staging = tmp_path / "staging"
    command = prep_to(url, source, staging, "--part", "0/2")
    run = subprocess.run(command, capture_output=True, text=True)
    assert f"velocity prep --out {url} --staging {staging} --finish" in run.stderr
    push_shards(finished_set, f"{url}/whole", ignore)
    command = prep_to(f"{url}/whole", source, tmp_path / "gone", "--append")
    run = subprocess.run(command, capture_output=True, text=True)
    assert f"velocity shards pull {url}/whole {tmp_path / 'gone'}" in run.stderr
