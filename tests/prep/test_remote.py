"""Files at URLs of web servers: listed, pinned, fetched beside encoding, whatever fails."""

import gzip
import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from prep.planning.plan import read_plan
from prep.remote import https
from prep.remote.download import download
from prep.remote.https import open_url
from prep.remote.pinned import RemoteFile
from prep.remote.places import find_remote, part_inputs
from prep.remote.retry import BRIEF, PATIENT, FailedDownloadError, Retry, SourceError
from shards.disk.layout import plan_path
from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from tests.commands import velocity
from tests.servers.forked import Forked
from tests.servers.hub_server import Answer, Fault, wait_little
from tests.servers.web_server import WebServer
from tests.texts import make_texts, read_texts, set_bytes, write_jsonl

QUICK = Retry(tries=4, first_delay_seconds=0.01)
SECRET = "p4ssw0rd-5ad"
Prep = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = PATIENT.first_delay_seconds, PATIENT.max_delay_seconds
    wait_little()
    monkeypatch.setattr(https, "MAX_SILENCE_SECONDS", 3.0)
    yield
    for retry in (BRIEF, PATIENT):
        object.__setattr__(retry, "first_delay_seconds", before[0])
        object.__setattr__(retry, "max_delay_seconds", before[1])


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    """Four files, one of each packing, of 50 documents each."""
    with WebServer() as server:
        for number, suffix in enumerate((".jsonl", ".jsonl.gz", ".json.zst", ".txt")):
            plain = write_jsonl(tmp_path / "x", [*make_texts(50, seed=number)]).read_bytes()
            server.files[f"data/{number}{suffix}"] = {
                ".jsonl": lambda content: content,
                ".jsonl.gz": gzip.compress,
                ".json.zst": zstandard.compress,
                ".txt": lambda content: content,
            }[suffix](plain)
        yield server


def list_urls(web: WebServer) -> list[str]:
    return [f"{web.url}/{path}" for path in web.files]


def run_prep(folder: Path, *words: object) -> tuple[int, str]:
    """`velocity prep` with small units; its exit code, and what it said."""
    folder.mkdir(exist_ok=True)
    options = ["--unit-bytes", "100", "--workers", "1", "--validation-fraction", "0.2"]
    code, _, errors = velocity("prep", "--out", "shards", *options, *words, cwd=folder)
    return code, errors


def give(urls: list[str]) -> list[str]:
    return [word for url in urls for word in ("--input", url)]


def test_files_at_urls_and_here_make_one_set(web: WebServer, tmp_path: Path) -> None:
    """Documents in = documents out; local files come first."""
    local = write_jsonl(tmp_path / "here.jsonl", [*make_texts(50, seed=9)])
    urls = list_urls(web)
    code, said = run_prep(tmp_path / "a", *give([*urls[:2], str(local), *urls[2:]]))
    assert code == 0, said
    assert "local files and " in said
    shards = tmp_path / "a" / "shards"
    manifest = read_manifest(shards)
    names = ["here.jsonl", *urls]
    assert [file["name"] for file in manifest.content["sources"]["files"]] == names
    assert [file["rows"] for file in manifest.content["sources"]["files"]] == [50] * 4 + [1]
    assert manifest.content["sources"]["hub"] is None
    texts = set(read_texts(shards).values())
    for seed in (0, 1, 2, 9):
        assert set(make_texts(50, seed=seed)) <= texts
    assert [fault for _, fault in verify_shards(shards) if fault] == []
    assert list((shards / ".prep/downloads").iterdir()) == []

    asked = len(web.requests)
    code, said = run_prep(tmp_path / "a", *give([*urls[:2], str(local), *urls[2:]]))
    assert (code, len(web.requests)) == (0, asked)
    assert "this set is finished already" in said


def test_no_secret_of_a_url_is_kept_or_said_and_none_changes_the_set(
    web: WebServer, tmp_path: Path
) -> None:
    web.logins = dict.fromkeys(web.files, f"user:{SECRET}")
    urls = list_urls(web)
    with_login = [
        url.replace("//", f"//user:{SECRET}@") + f"?sig={SECRET}#{SECRET}" for url in urls
    ]
    code, said = run_prep(tmp_path / "a", *give(with_login))
    assert code == 0, said
    assert SECRET not in said
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]

    web.logins = {}
    assert run_prep(tmp_path / "b", *give(urls))[0] == 0
    ids = [read_manifest(tmp_path / name / "shards").dataset_id for name in "ab"]
    assert ids[0] == ids[1]


def test_all_faults_in_one_run_change_no_byte(web: WebServer, tmp_path: Path) -> None:
    urls = list_urls(web)
    assert run_prep(tmp_path / "a", *give(urls))[0] == 0
    faults = [
        Fault(503),
        Fault(429, (("Retry-After", "0"),)),
        Fault(cut_after=0),
        Fault(cut_after=1000),
        Fault(stall_after=700),
    ]
    for path in [*web.files][:3]:
        for fault in faults:
            web.fail(path, fault)
    code, said = run_prep(tmp_path / "b", *give(urls))
    assert code == 0, said
    assert not any(fault.times for fault in web.faults)
    assert "broke off after 1,000 of" in said
    assert set_bytes(tmp_path / "b" / "shards") == set_bytes(tmp_path / "a" / "shards")


def test_what_arrived_before_a_connection_broke_is_not_fetched_again(
    web: WebServer, tmp_path: Path
) -> None:
    web.files["a.jsonl"] = content = bytes(range(256)) * 40
    [file] = find_remote([f"{web.url}/a.jsonl"])
    web.fail("a.jsonl", Fault(cut_after=4000))
    web.fail("a.jsonl", Fault(cut_after=2000))
    lines: list[str] = []
    path = download(file, tmp_path, lines.append, QUICK)
    assert path.read_bytes() == content
    ranges = [request.headers.get("Range") for request in web.find("a.jsonl")]
    assert ranges == [None, None, "bytes=4000-", "bytes=6000-"]
    assert [re.sub("; try.*", "", line.removeprefix(file.name)) for line in lines] == [
        ": broke off after 4,000 of 10,240 bytes",
        ": broke off after 6,000 of 10,240 bytes",
    ]
    assert [*tmp_path.glob("*.jsonl"), *tmp_path.glob(".*")] == [path]


def test_another_part_than_was_asked_for_is_not_taken_for_the_beginning(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["a.jsonl"] = content = bytes(range(256)) * 40
    [file] = find_remote([f"{web.url}/a.jsonl"])
    target = tmp_path / "file"
    target.write_bytes(content[:4000])

    def answer_from(start: int) -> None:
        headers = (("ETag", file.pin), ("Content-Range", f"bytes {start}-10239/10240"))
        answer = Answer(206, content[start:], headers)
        monkeypatch.setattr(web, "answer", lambda *request: answer)

    answer_from(5000)
    with pytest.raises(FailedDownloadError, match="came with another part than was asked for"):
        https.fetch_rest(file, target)
    assert target.read_bytes() == content[:4000]
    for start in (4000, 0):
        answer_from(start)
        target.write_bytes(content[:4000])
        https.fetch_rest(file, target)
        assert target.read_bytes() == content


@pytest.mark.parametrize("tag", ['W/"a"', ""])
def test_without_a_strong_version_a_file_is_fetched_from_its_beginning(
    web: WebServer, tmp_path: Path, tag: str
) -> None:
    web.files["a.jsonl"] = content = bytes(range(256)) * 40
    web.headers["ETag"] = tag
    [file] = find_remote([f"{web.url}/a.jsonl"])
    assert file.pin == tag
    web.fail("a.jsonl", Fault(cut_after=4000))
    assert download(file, tmp_path, lambda line: None, QUICK).read_bytes() == content
    assert not any("Range" in request.headers for request in web.find("a.jsonl"))


@pytest.mark.parametrize("kind", ["another etag", "another size", "while it is fetched"])
def test_a_file_that_was_changed_is_one_line_and_nothing_of_it_is_used(
    web: WebServer, tmp_path: Path, kind: str
) -> None:
    [path, *_] = web.files
    urls = list_urls(web)
    content = web.files[path]

    def change(request: object) -> None:
        if len(web.find(path)) == (3 if kind == "while it is fetched" else 2):
            web.files[path] = content[:-1] if kind == "another size" else content[::-1]

    if kind == "while it is fetched":
        web.fail(path, Fault(), times=1)
        web.fail(path, Fault(cut_after=1000), times=1)
    web.watch = change
    code, said = run_prep(tmp_path / "a", *give(urls))
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith(f"velocity: {urls[0]}: is no longer the file that was listed (")
    assert last.endswith("put that one back, or start over with another --out")
    assert not (tmp_path / "a/shards/manifest.json").exists()

    web.watch = lambda request: None
    web.files[path] = content
    assert run_prep(tmp_path / "a", *give(urls))[0] == 0
    assert run_prep(tmp_path / "b", *give(urls))[0] == 0
    assert set_bytes(tmp_path / "a/shards") == set_bytes(tmp_path / "b/shards")


def test_a_hash_that_the_server_states_is_compared(web: WebServer, tmp_path: Path) -> None:
    web.files["a.jsonl"] = b"x" * 99
    web.headers["x-goog-hash"] = "crc32c=AAAAAA==,md5=1B2M2Y8AsgTpgAmY7PhCfg=="
    [file] = find_remote([f"{web.url}/a.jsonl"])
    with pytest.raises(SourceError, match="came with other bytes than the server says, after 4"):
        download(file, tmp_path, lambda line: None, QUICK)
    assert not [*tmp_path.glob("*.jsonl"), *tmp_path.glob(".*")]
    web.headers["x-goog-hash"] = f"md5={b64encode(hashlib.md5(b'x' * 99).digest()).decode()}"
    web.fail("a.jsonl", Fault(flip_byte=50))
    lines: list[str] = []
    assert download(file, tmp_path, lines.append, QUICK).read_bytes() == b"x" * 99
    assert len(lines) == 1


def test_a_damaged_file_without_a_hash_is_fetched_again_by_the_next_run(
    web: WebServer, tmp_path: Path
) -> None:
    [url] = [url for url in list_urls(web) if url.endswith(".gz")]
    web.fail("data/1", Fault(), times=1)
    web.fail("data/1", Fault(flip_byte=500), times=1)
    code, said = run_prep(tmp_path / "a", "--input", url)
    assert code == 1
    assert said.splitlines()[-1].startswith(f"velocity: {url}: "), said
    assert run_prep(tmp_path / "a", "--input", url)[0] == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("data/none.jsonl", r"there is no such file \(HTTP 404\); check the URL"),
        ("data/", "expected the URL of a file ending in .parquet, .* before any"),
        ("data/*.jsonl", "a web server lists no files; give the URL of each"),
        ("get?file=a.jsonl", "expected the URL of a file ending in"),
        ("login.jsonl", r"access is denied \(HTTP 401\); check user and password in the URL"),
        ("page.jsonl", "is a web page, not the file; give the URL that a browser downloads"),
        ("endless.jsonl", "the server does not say how large the file is; download it"),
        ("packed.jsonl", r"the server sends it packed \(gzip\) although it was asked not to"),
        ("moved.jsonl", r"is redirected to what is not followed \(HTTP 302\); give the final URL"),
        ("teapot.jsonl", r"the server refused it \(HTTP 418\)"),
    ],
)
def test_what_is_no_file_is_one_line(
    web: WebServer, tmp_path: Path, path: str, message: str
) -> None:
    name = path.partition(".")[0]
    web.files[path] = b"{}"
    if name == "data/none":
        del web.files[path]
    web.logins = {"login.jsonl": "user:key"}
    kinds = {"page": ("Content-Type", "text/html; charset=x"), "endless": ("Connection", "close")}
    web.headers = dict([kinds.get(name, ("Content-Encoding", "gzip" if name == "packed" else ""))])
    web.fail("moved", Fault(302, (("Location", "file:///etc/passwd.jsonl"),)))
    web.fail("teapot", Fault(418))
    code, said = run_prep(tmp_path / "a", "--input", f"{web.url}/{path}")
    assert code == 1
    assert re.search(message, said.splitlines()[-1]), said
    shown = f"{web.url}/{path.partition('?')[0].rstrip('/')}"
    assert said.splitlines()[-1].startswith(f"velocity: {shown}: ")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/a.jsonl", "nothing is read from there; expected a URL of https, hf, s3 or gs"),
        ("file://host/a.jsonl", "a file URL names no machine; expected file:///folder"),
        ("https://user:a/b@host/a.jsonl", "is not a URL that can be read; write @ as %40"),
        (
            f"http://127.0.0.1/a.jsonl?sig={SECRET} x",
            "is not a URL that can be read; write a space",
        ),
        ("https:///a.jsonl", "names no host; expected the URL of a file ending in"),
    ],
)
def test_a_url_of_another_kind_is_one_line(tmp_path: Path, url: str, message: str) -> None:
    code, said = run_prep(tmp_path / "a", "--input", url)
    assert code == 1
    assert message in said.splitlines()[-1]
    assert "a/b@" not in said
    assert SECRET not in said


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*make_texts(5)])
    assert part_inputs([f"file://{tmp_path}/a.jsonl"]) == ([f"{tmp_path}/a.jsonl"], [])
    assert run_prep(tmp_path / "a", "--input", f"file://{tmp_path}/a.jsonl")[0] == 0


def test_a_host_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with WebServer() as web:
        url = f"{web.url}/a.jsonl"
    code, said = run_prep(tmp_path / "a", "--input", url)
    assert code == 1
    assert re.search(r"Connection refused, after 4 tries; check the network", said), said


def test_a_redirect_is_followed_without_the_password(web: WebServer, tmp_path: Path) -> None:
    """The typed host may send a file's request elsewhere, but not who asks for it."""
    with WebServer() as other:
        other.files["b.jsonl"] = content = b'{"content": "x"}\n'
        web.fail("a.jsonl", Fault(302, (("Location", f"{other.url}/b.jsonl?sig=1"),)), times=99)
        url = f"{web.url}/a.jsonl".replace("//", f"//user:{SECRET}@")
        [file] = find_remote([url])
        assert download(file, tmp_path, lambda line: None, QUICK).read_bytes() == content
        assert file.name == f"{web.url}/a.jsonl"
        assert all("Authorization" in request.headers for request in web.requests)
        assert len(other.requests) == 2
        assert not any("Authorization" in request.headers for request in other.requests)


def test_https_is_not_left_for_http() -> None:
    handler = https._Redirects()
    for after in ("http://host/a.jsonl", "ftp://host/a.jsonl"):
        with pytest.raises(Exception, match="redirected to what is not https"):
            handler.redirect_request(
                https.web.Request("https://host/a.jsonl"), None, 302, "", {}, after
            )


def test_two_files_of_one_name_are_refused(web: WebServer) -> None:
    web.files["a.jsonl"] = b"{}"
    url = f"{web.url}/a.jsonl"
    assert len(find_remote([f"{url}?x=1", url])) == 1
    answer = web.answer

    def choose(request: object, path: str, form: object) -> object:
        web.files["a.jsonl"] = b"{} " if "x=1" in path else b"{}"
        return answer(request, path, form)  # type: ignore[arg-type]

    web.answer = choose  # type: ignore[assignment, method-assign]
    with pytest.raises(SourceError, match="two files would have this name, which is a URL with"):
        find_remote([f"{url}?x=1", url])


def test_killed_it_goes_on_with_the_files_that_were_pinned(web: WebServer, tmp_path: Path) -> None:
    urls = list_urls(web)
    assert run_prep(tmp_path / "whole", *give(urls))[0] == 0
    web.requests.clear()
    web.fail("data/2", Fault(), times=1)
    web.fail("data/2", Fault(stall_after=500), times=1)
    folder = tmp_path / "killed"
    folder.mkdir()
    options = ["--unit-bytes", "100", "--workers", "1", "--validation-fraction", "0.2"]
    process = Forked(["velocity", "prep", "--out", "shards", *options, *give(urls)], folder)
    process.kill_after(folder / "shards/.prep/units/00001.json")
    before = {path: len(web.find(path)) for path in web.files}
    # A new query, as signed URLs have it, is the same file.
    assert run_prep(folder, *give([f"{url}?signature=2" for url in urls]))[0] == 0
    paths = [*web.files]
    assert [len(web.find(path)) - before[path] for path in paths[:3]] == [0, 0, 1]
    assert set_bytes(folder / "shards") == set_bytes(tmp_path / "whole" / "shards")
    ids = [read_manifest(tmp_path / name / "shards").dataset_id for name in ("whole", "killed")]
    assert ids[0] == ids[1]


def test_parts_share_one_list_and_fetch_their_own_files(web: WebServer, tmp_path: Path) -> None:
    urls = list_urls(web)
    assert run_prep(tmp_path / "whole", *give(urls))[0] == 0
    web.requests.clear()
    for part in ("0/2", "1/2"):
        assert run_prep(tmp_path / "parts", *give(urls), "--part", part)[0] == 0
    assert [len(web.find(path)) for path in web.files] == [2] * 4
    code, _, errors = velocity("prep", "--out", "shards", "--finish", cwd=tmp_path / "parts")
    assert code == 0, errors
    assert set_bytes(tmp_path / "parts/shards") == set_bytes(tmp_path / "whole/shards")


def test_a_sample_fetches_its_files_alone(web: WebServer, tmp_path: Path) -> None:
    urls = list_urls(web)
    code, said = run_prep(tmp_path / "a", *give(urls), "--sample", "0.5")
    assert code == 0
    assert "a sample, 0.5 of all" in said
    assert sorted(len(web.find(path)) for path in web.files) == [1, 1, 2, 2]


def test_files_at_urls_are_appended_once(web: WebServer, tmp_path: Path) -> None:
    urls = list_urls(web)
    assert run_prep(tmp_path / "a", *give(urls[:2]))[0] == 0
    code, said = run_prep(tmp_path / "a", *give(urls[2:]), "--append")
    assert code == 0, said
    files = read_manifest(tmp_path / "a/shards").content["sources"]["files"]
    assert [file["name"] for file in files] == urls
    code, said = run_prep(tmp_path / "a", *give(urls[2:]), "--append")
    assert "these sources are in the set already" in said
    code, said = run_prep(tmp_path / "a", *give(urls[:1]), "--append")
    assert code == 1
    assert f"{urls[0]}: the set already has a source of this name" in said


def test_other_urls_over_an_unfinished_set_are_told(web: WebServer, tmp_path: Path) -> None:
    urls = list_urls(web)
    assert run_prep(tmp_path / "a", *give(urls), "--part", "0/2")[0] == 0
    code, said = run_prep(tmp_path / "a", *give(urls[:3]))
    assert code == 1
    assert f"{urls[3]} is gone; run the command it was made with" in said.splitlines()[-1]
    code, said = run_prep(tmp_path / "a", *give([*urls, urls[0]]))
    assert code == 1
    assert "--input gave the URLs in other words; run the command" in said.splitlines()[-1]


def test_a_plan_with_urls_comes_back_from_its_file(web: WebServer, tmp_path: Path) -> None:
    assert run_prep(tmp_path / "a", *give(list_urls(web)))[0] == 0
    content, plan = read_plan(plan_path(tmp_path / "a/shards"))
    assert [file.name for file in plan.at_urls] == list_urls(web)
    assert content["sources"][1][4:] == [plan.at_urls[1].pin, 1]
    assert "://user" not in repr(RemoteFile("a", 1, url="https://user:key@host"))


def test_a_port_and_odd_letters_in_a_path_are_kept(web: WebServer, tmp_path: Path) -> None:
    web.files["Fürst/Łódź 1.txt"] = b"x"
    web.files["a b.txt"] = b"x"
    for path in ("Fürst/Łódź%201.txt", "a%20b.txt"):
        with open_url(f"{web.url}/{path}", "name") as response:
            assert response.status == 200
