"""manifest.json: a bit that flips in it is found, and what cannot be one is refused in one line."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.disk.json_files import MAX_JSON_BYTES, SEAL, is_sealed, seal_json
from shards.edit.cut import cut_manifest
from shards.format import make_manifest, parse_manifest, read_manifest
from tests.commands import velocity
from tests.manifests import edit_manifest
from tests.texts import make_texts, prepare_quietly, write_parquet

Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    source = write_parquet(folder / "source.parquet", [*make_texts(60), "Übermut, 北京, 🙂"])
    prepare_quietly(folder / "shards", source, validation_fraction="0.2")
    return folder / "shards"


@pytest.fixture
def shards_copy(finished_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_set, tmp_path / "shards"))


def test_a_bit_that_flips_anywhere_in_a_manifest_is_found(finished_set: Path) -> None:
    whole = (finished_set / "manifest.json").read_bytes()
    assert parse_manifest(whole, "manifest.json").is_sealed
    for place in range(len(whole)):
        for bit in (place % 8, 5):  # The sixth turns letters into capitals and spaces into NULs.
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            with pytest.raises(ValueError, match="so it was edited or damaged") as caught:
                parse_manifest(bytes(changed), "a/manifest.json")
            assert str(caught.value).startswith("a/manifest.json: "), place
            assert "\n" not in str(caught.value), place


def test_a_manifest_may_be_laid_out_anew(finished_set: Path) -> None:
    text = (finished_set / "manifest.json").read_text(encoding="utf-8")
    for other in (
        json.dumps(json.loads(text)),
        json.dumps(json.loads(text), indent=4),
        text.replace("\n", "\r\n"),
        text.rstrip("\n"),
        text.replace('"split"', '"\\u0073plit"', 1),
    ):
        assert parse_manifest(other, "manifest.json").is_sealed


def test_a_manifest_that_differs_from_what_was_written_is_found(finished_set: Path) -> None:
    text = (finished_set / "manifest.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    raw["environment"]["seconds"] = 1e-05
    small = seal_json({key: value for key, value in raw.items() if key != SEAL})
    assert parse_manifest(small, "manifest.json").environment["seconds"] == 1e-05
    for other in (
        small.replace("1e-05", "1E-05"),
        json.dumps(raw),
        json.dumps(raw, sort_keys=True),
        text.replace(' "audit"', ' "audit": {},\n "audit"'),
        text.replace(f'"{SEAL}"', f'"{SEAL}": 1,\n "{SEAL}"'),
    ):
        with pytest.raises(ValueError, match="so it was edited or damaged"):
            parse_manifest(other, "manifest.json")


def test_verify_names_the_manifest_and_no_file_that_is_whole(shards_copy: Path) -> None:
    path = shards_copy / "manifest.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    sidecars = raw["environment"]["sidecar_sha256"]
    for value in (*sidecars.values(), raw["content"]["tokenizer"]["sha256"]):
        whole = path.read_text(encoding="utf-8")
        path.write_text(whole.replace(value, "5a" * 32), encoding="utf-8")
        code, _, errors = velocity("shards", "verify", shards_copy)
        path.write_text(whole, encoding="utf-8")
        assert code == 1
        assert errors.startswith(f"velocity: {path}: ")
        assert "parquet" not in errors


def test_whatever_makes_a_manifest_seals_it(finished_set: Path) -> None:
    manifest = read_manifest(finished_set)
    given = (manifest.content, manifest.shards, manifest.audit, manifest.environment)
    written = (finished_set / "manifest.json").read_text(encoding="utf-8")
    for text in (written, make_manifest(*given), cut_manifest(manifest, "train", None)):
        assert is_sealed(text, json.loads(text))
        assert parse_manifest(text, "manifest.json").is_sealed
    assert make_manifest(*given) == written


def test_manifests_of_before_stay_readable_and_are_sealed_by_the_next_version(
    shards_copy: Path,
) -> None:
    new = read_manifest(shards_copy)
    path = edit_manifest(shards_copy, lambda m: None, sealed=False)
    assert SEAL not in path.read_text(encoding="utf-8")
    old = read_manifest(shards_copy)
    assert (old.dataset_id, old.content, old.is_sealed) == (new.dataset_id, new.content, False)
    assert velocity("shards", "verify", shards_copy)[0] == 0
    assert parse_manifest(cut_manifest(old, "train", None), "manifest.json").is_sealed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["totals"]["train"].update(tokens=123), "totals are not those of its shards"),
        (lambda m: m.update(extra=1), "extra is not a key of a manifest, so it was edited"),
        (lambda m: m.pop("audit"), "audit is missing, so it was edited or damaged"),
        (lambda m: m.update(schema_version=True), "schema_version is True; this velocity reads 1"),
    ],
)
def test_of_a_manifest_of_before_what_can_be_checked_is(
    shards_copy: Path, change: Change, message: str
) -> None:
    edit_manifest(shards_copy, change, sealed=False)
    with pytest.raises(ValueError, match=message):
        read_manifest(shards_copy)


def test_an_old_manifest_does_not_blame_a_sidecar_that_may_be_whole(shards_copy: Path) -> None:
    sidecar = read_manifest(shards_copy).shards[0].sidecar

    def flip(manifest: Any) -> None:
        manifest["environment"]["sidecar_sha256"][sidecar] = "5a" * 32

    edit_manifest(shards_copy, flip, sealed=False)
    code, said, _ = velocity("shards", "verify", shards_copy)
    assert code == 1
    assert f"{sidecar}: its sha256 is not the manifest's; one of the two is damaged" in said


def test_a_line_that_was_edited_is_refused_before_anything_is_made_of_it(
    shards_copy: Path, tmp_path: Path
) -> None:
    path = shards_copy / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace("train-00000", "train-00009"))
    for command in (
        ("info", shards_copy),
        ("stats", shards_copy),
        ("show", shards_copy, "--document", 0),
        ("push", shards_copy, tmp_path / "pushed"),
        ("pull", shards_copy, tmp_path / "pulled"),
        ("export", shards_copy, tmp_path / "exported"),
        ("remove", shards_copy, "--doc-hash", "11" * 16),
        ("trace", shards_copy, "--config", "tiny", "--step", 1),
    ):
        code, _, errors = velocity("shards", *command)
        assert code == 1
        assert errors.count("\n") == 1
        assert "manifest.json: its lines do not hash to its sha256_of_lines_above" in errors
    assert not (tmp_path / "pushed").exists()
    assert not (tmp_path / "pulled").exists()


def first_shard(**values: object) -> Change:
    return lambda m: m["content"]["shards"][0].update(values)


SHARD = r"content.shards\[0\]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(content=5), "content is 5; expected an object"),
        (lambda m: m["content"].pop("tokenizer"), "content.tokenizer is missing"),
        (lambda m: m["content"].update(parent="x"), "content.parent is 'x'; expected an object"),
        (lambda m: m["content"].update(parent={}), "content.parent.dataset_id is missing"),
        (
            lambda m: m["content"].update(parent={"dataset_id": "../../x"}),
            "content.parent.dataset_id is '../../x'; expected a sha256",
        ),
        (lambda m: m["content"].update(ancestors=5), "content.ancestors is 5; expected a list"),
        (lambda m: m["content"].update(ancestors=["x"]), r"ancestors\[0\] is 'x'; expected a sha"),
        (lambda m: m["content"].update(appended=5), "content.appended is 5; expected a list"),
        (lambda m: m["content"].update(appended=[{"x": 1}]), r"appended\[0\].hub is missing"),
        (lambda m: m["content"].update(policy=[1]), "content.policy is .*expected an object"),
        (
            lambda m: m["content"]["policy"].update(validation_fraction=0.2),
            "content.policy.validation_fraction is 0.2; expected text",
        ),
        (lambda m: m["content"]["sources"].pop("hub"), "content.sources.hub is missing"),
        (lambda m: m["content"]["sources"].update(hub=[1]), r"sources.hub is \[1\]; expected an o"),
        (lambda m: m["content"]["sources"].update(hub={}), "content.sources.hub.repo is missing"),
        (
            lambda m: m["content"]["tokenizer"].update(vocab_size=10**6),
            "has 1,000,000 ids.* expected at most 65,536",
        ),
        (lambda m: m["content"]["tokenizer"].update(end_of_text=50257), "and that one of them"),
        (lambda m: m.update(audit={}), "audit.dropped is missing"),
        (lambda m: m["audit"].update(dropped={"x": "y"}), "audit.dropped.x is 'y'; expected a who"),
        (lambda m: m["audit"].update(train="x"), "audit.train is 'x'; expected a whole number"),
        (lambda m: m["environment"].update(sidecar_sha256=[]), "sidecar_sha256 is .*an object"),
        (lambda m: m["environment"].update(sidecar_sha256={"a": 1}), "sidecar_sha256.a is 1; exp"),
        (lambda m: m["environment"].update(seconds="soon"), "environment.seconds is 'soon'; exp"),
        (first_shard(num_tokens="5"), f"{SHARD}.num_tokens is '5'; expected a whole number"),
        (first_shard(num_tokens=True), f"{SHARD}.num_tokens is True; expected a whole number"),
        (first_shard(num_tokens=10**30), f"{SHARD}.num_tokens is 10+; expected .*,775,807"),
        (first_shard(num_tokens=2**62), "more tokens than any file holds"),
        (first_shard(num_documents=-1), f"{SHARD}.num_documents is -1; expected a whole number"),
        (first_shard(num_documents=2**63 - 1), "expected at least a token each"),
        (first_shard(sha256="x"), f"{SHARD}.sha256 is 'x'; expected a sha256, 64 hexadecimal"),
        (first_shard(extra=1), f"{SHARD}.extra is not a key that this velocity knows"),
        (lambda m: m["content"]["shards"].clear(), "totals are not those of its shards"),
        (lambda m: m["content"]["shards"].insert(0, 7), f"{SHARD} is 7; expected an object"),
    ],
)
def test_a_manifest_of_another_shape_is_one_line(
    shards_copy: Path, change: Change, message: str
) -> None:
    whole = (shards_copy / "manifest.json").read_bytes()
    for sealed in (True, False):
        path = edit_manifest(shards_copy, change, sealed)
        with pytest.raises(ValueError, match=message) as caught:
            read_manifest(shards_copy)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "name", ["../train-00000.bin", "/etc/passwd", "a/b.bin", "..\\x.bin", "a\0.bin", "\x1b[2J.bin"]
)
def test_a_manifest_never_leads_out_of_its_folder(shards_copy: Path, name: str) -> None:
    edit_manifest(shards_copy, first_shard(name=name))
    with pytest.raises(ValueError, match="is not a shard's name"):
        read_manifest(shards_copy)


def test_a_manifest_names_each_shard_once(shards_copy: Path) -> None:
    def repeat(manifest: Any) -> None:
        shards, totals = manifest["content"]["shards"], manifest["totals"]["train"]
        shards.append(shards[0])
        totals.update(
            shards=totals["shards"] + 1,
            documents=totals["documents"] + shards[0]["num_documents"],
            tokens=totals["tokens"] + shards[0]["num_tokens"],
        )

    edit_manifest(shards_copy, repeat)
    with pytest.raises(ValueError, match="names a shard twice"):
        read_manifest(shards_copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON .*4300 digits"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"\\udfff": 1}', "half a surrogate pair"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' occurs twice"),
        (b'{"a": "\xff"}', "not valid JSON .*can't decode byte 0xff"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON .*BOM"),
        (b'{"a": 1}'.decode().encode("utf-16"), "not valid JSON"),
        (b"[1]", "expected a JSON object, not a list"),
        (b"", "not valid JSON"),
    ],
)
def test_json_that_no_code_could_walk_is_one_line(
    tmp_path: Path, text: bytes, message: str
) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"{message}.*, so it was edited or damaged") as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with open(path, "wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ValueError, match=r"manifest.json: is larger than 268,435,456 bytes"):
        read_manifest(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"manifest.json: is not a file; expected JSON"):
        read_manifest(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"manifest.json: is not a file; expected JSON"):
        read_manifest(tmp_path)
