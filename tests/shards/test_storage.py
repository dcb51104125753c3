"""Sets on object storage: what comes back is what was sent, or it does not come back at all."""

import shutil
import signal
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree
from threading import Thread

import pytest
from typer.testing import CliRunner

from cli import app
from shards.disk.part import Part, parse_part
from shards.exchange.packing import DamagedError, pack, unpack
from shards.exchange.pull import pull_shards
from shards.exchange.push import push_shards
from shards.exchange.storage import open_storage
from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from shards.screen.url import restore_url, show_url
from tests.manifests import edit_manifest
from tests.servers.forked import Forked
from tests.servers.held import hold_after
from tests.servers.s3_server import S3Server
from tests.stored import (
    BUCKET,
    change_object,
    environment,
    files_of,
    finished_set,
    flip_byte,
    ignore,
    read_shards,
    run_command,
    server,
    url,
)

# Fixtures of all tests of storage.
__all__ = ["environment", "finished_set", "server", "url"]


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
    command = ["velocity", "shards", "pull", url, str(folder), "--workers", "1"]
    process = Forked(command, setup=hold_after("shards.exchange.fetch", "fetch_file", 30))
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
    command = ["velocity", "shards", "push", str(finished_set), url]
    command += ["--compress", "--workers", "1"]
    process = Forked(command, setup=hold_after("shards.exchange.send", "send_file", 30))
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
    with pytest.raises(ValueError, match=r"004.bin: is missing there, one of 1 missing files"):
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
    assert list(manifest.shards) == whole.split("validation")
    assert manifest.same_places == [whole.dataset_id]
    pulled = pull_shards(url, tmp_path / "t", ignore, "train")
    assert list(pulled.shards) == whole.split("train")
    with pytest.raises(ValueError, match="--split is 'test'; expected one of train, validation"):
        pull_shards(url, tmp_path / "none", ignore, split="test")
    with pytest.raises(ValueError, match="22 train, 3 validation shards, so the part asked"):
        pull_shards(url, tmp_path / "none", ignore, "validation", Part(5, 9))


def test_a_part_is_chosen_on_the_command_line(finished_set: Path, tmp_path: Path) -> None:
    wanted = [("--split", "validation"), ("--part", "1/4"), ("--split", "train", "--part", "0/3")]
    cuts = [("validation", None), (None, Part(1, 4)), ("train", Part(0, 3))]
    for number, (options, cut) in enumerate(zip(wanted, cuts, strict=True)):
        place = str(tmp_path / f"typed-{number}")
        result = CliRunner().invoke(app, ["shards", "pull", str(finished_set), place, *options])
        assert result.exit_code == 0, result.output
        called = pull_shards(str(finished_set), tmp_path / f"called-{number}", ignore, *cut)
        assert read_manifest(Path(place)).dataset_id == called.dataset_id


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
    storage = open_storage(url)
    text = storage.read_bytes("manifest.json")
    storage.write("manifest.json", [text.replace(b"train-00000", b"train-00009")])
    with pytest.raises(ValueError, match=f"{url}/manifest.json: its lines do not hash to its sha"):
        pull_shards(url, tmp_path / "pulled", ignore)
    folder = Path(copytree(finished_set, tmp_path / "copy"))
    path = edit_manifest(folder, lambda m: m["content"]["shards"][0].update(name="../evil.bin"))
    storage.write("manifest.json", [path.read_bytes()])
    with pytest.raises(ValueError, match="is not a shard's name"):
        pull_shards(url, tmp_path / "pulled", ignore)
    assert not (tmp_path / "pulled").exists()


def test_passing_faults_are_survived_and_lasting_ones_told(
    finished_set: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.exchange import fetch
    from shards.exchange.storage import StorageError

    push_shards(finished_set, url, ignore)
    copy_file, faults = fetch.copy_file, iter(range(10))

    def copy_with_faults(*arguments: object) -> str | None:
        if next(faults, None) is not None:
            raise StorageError("the line was cut")
        return copy_file(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fetch, "copy_file", copy_with_faults)
    pull_shards(url, tmp_path / "pulled", ignore)
    assert files_of(tmp_path / "pulled") == files_of(finished_set)

    monkeypatch.setattr(fetch, "copy_file", lambda *_: (_ for _ in ()).throw(StorageError("cut")))
    with pytest.raises(StorageError, match="cut"):
        pull_shards(url, tmp_path / "again", ignore)


def test_a_full_disk_is_noticed_before_the_start(
    finished_set: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_shards(finished_set, url, ignore)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        ValueError, match=r"about .* MB of disk is needed in .*, and 1 KB is free; free some, or"
    ):
        pull_shards(url, tmp_path / "pulled", ignore)


def test_places_without_a_set_say_what_they_are(finished_set: Path, tmp_path: Path) -> None:
    missing = f"s3://{BUCKET}/nothing/here"
    with pytest.raises(ValueError, match=f"{missing}: no manifest.json there .nothing is"):
        pull_shards(missing, tmp_path / "a", ignore)
    with pytest.raises(ValueError, match="s3://no-such-one/set: there is no such bucket; check"):
        pull_shards("s3://no-such-one/set", tmp_path / "a", ignore)
    with pytest.raises(ValueError, match="s3://no-such-one/set: there is no such bucket; check"):
        push_shards(finished_set, "s3://no-such-one/set", ignore)
    with pytest.raises(
        ValueError, match="s3://: names no bucket; expected one such as s3://bucket"
    ):
        pull_shards("s3://", tmp_path / "a", ignore)
    with pytest.raises(ValueError, match="https://host/set: is not a folder's URL"):
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
