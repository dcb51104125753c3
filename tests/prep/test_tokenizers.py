"""`--tokenizer`: sets made with tokenizers of every shape, against `tokenizers` itself."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from prep.append import append_sources
from prep.gather import finish_parts
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from prep.run_part import prepare_part
from prep.tokenizer.gpt2 import build_gpt2_json
from shards.disk.part import parse_part
from shards.documents import Sidecars
from shards.format import Manifest, read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.commands import velocity
from tests.servers.forked import Forked, run_forked
from tests.servers.hub_server import Fault, HubServer
from tests.texts import make_texts, set_bytes, write_jsonl
from tests.vocabularies import NAMES, build, special

HARD = [
    "</s>",
    "a <|end|> b<|endoftext|>c <s>d</s>e <unk> <pad>",
    "<|begin_of_text|>x<|end_of_text|> <|reserved_special_token_7|>",
    "It's 12345 and WE'LL see: caf\u00e9, na\u00efve, \u4f60\u597d, \U0001f600!",
    "tabs\tand\nlines\n\n\n  and   spaces \r\n end",
    "x" * 3000 + " " * 3000 + "!",
    "\u0645\u0631\u062d\u0628\u0627 \u0441\u043b\u043e\u0432\u043e \u2581 \x00",
]
ENDS = {
    "gpt2": "<|endoftext|>",
    "bpe_32k": "<|end|>",
    "llama3": "<|end_of_text|>",
    "sentencepiece": "</s>",
    "unigram": "</s>",
}
SPACE_IS = {"sentencepiece", "unigram"}
SPLIT = {"validation_fraction": "0.2", "unit_bytes": 8000, "shard_tokens": 5000}
Ids = list[int]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each of the tokenizers in a folder of its own."""
    root = tmp_path_factory.mktemp("tokenizers")
    for name in NAMES:
        (root / name).mkdir()
        (root / name / "tokenizer.json").write_text(build(name), encoding="utf-8")
    return {name: root / name for name in NAMES}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [*make_texts(120, mean_words=40), *HARD]
    return write_jsonl(tmp_path_factory.mktemp("source") / "a.jsonl", [*texts])


def make_request(out: Path, source: Path, **options: Any) -> Request:
    fields = {"tokenizer", "end_of_document", "begin_of_document", "encoder", "task", "workers"}
    own = {name: value for name, value in options.items() if name in fields}
    policy = {name: value for name, value in options.items() if name not in fields}
    if isinstance(own.get("tokenizer"), Path):
        own["tokenizer"] = str(own["tokenizer"])
    return Request(out, policy=Policy(**policy), inputs=(str(source),), **{"workers": 1} | own)


def make_set(out: Path, source: Path, **options: Any) -> Manifest:
    return prepare(make_request(out, source, **options), lambda line: None)


def refuse(out: Path, source: Path, *options: object) -> str:
    """The one line with which prep refuses."""
    code, _, errors = velocity("prep", "--out", out, "--input", source, "--workers", 1, *options)
    assert code == 1
    return errors.splitlines()[-1]


def read_ids(folder: Path) -> dict[int, Ids]:
    """The ids of every document, by its row."""
    shards = open_shards(folder)
    found = {}
    for split in ("train", "validation"):
        stream = shards.stream(split)
        for document in Sidecars(shards, split).between(0, stream.num_tokens):
            ids = stream.read(document.start, document.num_tokens).tolist()
            assert document.source_row not in found
            found[document.source_row] = ids
    return found


def load_reference(name: str) -> Tokenizer:
    """`tokenizers` itself, told as its documentation says that special tokens are text."""
    tokenizer = Tokenizer.from_str(build(name))
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_lines(source: Path) -> list[str]:
    return [json.loads(line)["content"] for line in source.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("encoder", [None, "tokenizers"])
@pytest.mark.parametrize("name", NAMES)
def test_every_document_has_the_ids_of_tokenizers_and_decodes_to_its_text(
    folders: dict[str, Path], source: Path, tmp_path: Path, name: str, encoder: str | None
) -> None:
    manifest = make_set(
        tmp_path / "shards", source, tokenizer=folders[name], encoder=encoder, **SPLIT
    )
    assert [fault for _, fault in verify_shards(tmp_path / "shards") if fault] == []
    reference = load_reference(name)
    specials = {i for i, t in reference.get_added_tokens_decoder().items() if t.special}
    end = reference.token_to_id(ENDS[name])
    texts, found = read_lines(source), read_ids(tmp_path / "shards")
    assert len(found) == len(texts)
    spelled = 0
    for row, ids in found.items():
        *inner, last = ids
        assert last == end
        assert not specials & set(inner)
        expected = reference.encode(texts[row], add_special_tokens=False).ids
        # Unigram finds special tokens in text, whatever it is told.
        if specials & set(expected):
            spelled += 1
        else:
            assert inner == expected, ascii(texts[row][:100])
        # SentencePiece writes a space as this character, and takes it for one.
        text = texts[row] if name not in SPACE_IS else texts[row].replace("\u2581", " ")
        assert reference.decode(inner, skip_special_tokens=False) == text
    assert spelled == (2 if name == "unigram" else 0)
    facts = manifest.content["tokenizer"]
    assert facts["name"] == ("gpt2" if name == "gpt2" else "custom")
    assert (facts["end_of_text"], facts["vocab_size"]) == (end, max_id(reference) + 1)
    assert "begin_of_text" not in facts
    wide = facts["vocab_size"] > 65536
    assert wide == (name == "llama3")
    assert manifest.token_bytes == (4 if wide else 2)
    assert (tmp_path / "shards/tokenizer.json").read_text("utf-8") == build(name)


def max_id(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab().values())


@pytest.fixture(scope="module")
def begun(folders: dict[str, Path], source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of one process with a token before each document."""
    out = tmp_path_factory.mktemp("begun") / "shards"
    make_set(out, source, tokenizer=folders["sentencepiece"], begin_of_document="<s>", **SPLIT)
    return out


def test_a_token_before_each_document(begun: Path, source: Path) -> None:
    reference = load_reference("sentencepiece")
    begin, end = 1, 2
    texts, found = read_lines(source), read_ids(begun)
    for row, ids in found.items():
        inner = reference.encode(texts[row], add_special_tokens=False).ids
        assert ids == [begin, *inner, end]
    manifest = read_manifest(begun)
    assert manifest.content["tokenizer"]["begin_of_text"] == begin
    total = manifest.num_tokens("train") + manifest.num_tokens("validation")
    assert total == sum(map(len, found.values()))


def test_both_tokens_count_for_max_tokens(
    folders: dict[str, Path], begun: Path, source: Path, tmp_path: Path
) -> None:
    sizes = [len(ids) for _, ids in sorted(read_ids(begun).items())]
    options = {"tokenizer": folders["sentencepiece"], "begin_of_document": "1"}
    for limit, kept in ((sum(sizes[:9]), 9), (sum(sizes[:9]) - 1, 8)):
        manifest = make_set(tmp_path / str(limit), source, max_tokens=limit, **options)
        assert sum(shard.num_documents for shard in manifest.shards) == kept


def test_workers_parts_and_encoders_make_the_same_bytes(
    folders: dict[str, Path], begun: Path, source: Path, tmp_path: Path
) -> None:
    options = SPLIT | {"tokenizer": folders["sentencepiece"], "begin_of_document": "<s>"}
    make_set(tmp_path / "two", source, workers=2, encoder="tokenizers", **options)
    for part in ("1/2", "0/2"):
        request = make_request(tmp_path / "parts", source, task=parse_part(part), **options)
        prepare_part(request, lambda line: None)
    finish_parts(Request(tmp_path / "parts", task="finish", workers=1), lambda line: None)
    for other in ("two", "parts"):
        assert set_bytes(tmp_path / other) == set_bytes(begun)
        assert read_manifest(tmp_path / other).dataset_id == read_manifest(begun).dataset_id


def test_killed_and_begun_again_it_makes_the_same_bytes(
    folders: dict[str, Path], begun: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SPLIT.items()]
    options += [f"--tokenizer={folders['sentencepiece']}", "--begin-of-document=<s>"]
    options += ["--encoder=tokenizers"]
    command = ["velocity", "prep", "--out", out, "--input", source, "--workers", "1", *options]
    draw = random.Random(9)
    for _ in range(3):
        process = Forked(command)
        wanted = count_receipts(out) + draw.randint(0, 1)
        while process.poll() is None and count_receipts(out) <= wanted:
            pass
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert run_forked(command).returncode == 0
    assert set_bytes(out) == set_bytes(begun)
    assert read_manifest(out).dataset_id == read_manifest(begun).dataset_id


def count_receipts(out: Path) -> int:
    return len(list((out / ".prep/units").glob("[0-9]*.json")))


def test_sets_of_gpt2_keep_their_ids(tmp_path: Path, folders: dict[str, Path]) -> None:
    """As they were before there was another tokenizer; its own file is no other."""
    texts = [*make_texts(50), "", None, " <|endoftext|>\n"]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    plan_id = "6dc0ec161256862eed48751df6b61f7fc754c24236eb9747a30273064b64d9cf"
    dataset_id = "952362f9cd431529d700c750ec0ac3e94e21a3575c6c8a05ca26a37a4533700a"
    ways: list[dict[str, Any]] = [{}, {"tokenizer": "gpt2"}, {"tokenizer": folders["gpt2"]}]
    ways += [{"end_of_document": "<|endoftext|>"}, {"end_of_document": "50256"}]
    for number, way in enumerate(ways):
        out = tmp_path / str(number)
        manifest = make_set(out, path, validation_fraction="0.2", unit_bytes=4000, **way)
        assert manifest.dataset_id == dataset_id
        assert json.loads((out / ".prep/plan.json").read_text())["plan_id"] == plan_id


def change(name: str, edit: Callable[[dict[str, Any]], Any]) -> str:
    """A tokenizer.json with a change."""
    raw = json.loads(build(name))
    edit(raw)
    return json.dumps(raw)


def write(folder: Path, text: str | bytes, config: object = None) -> Path:
    """A folder with this tokenizer.json, and a tokenizer_config.json if any."""
    folder.mkdir(exist_ok=True)
    content = text.encode() if isinstance(text, str) else text
    (folder / "tokenizer.json").write_bytes(content)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "options", "end"),
    [
        ({"eos_token": "<s>"}, [], "<s>"),
        ({"eos_token": {"content": "<unk>", "lstrip": False}}, [], "<unk>"),
        ({"eos_token": None}, [], "</s>"),
        (None, [], "</s>"),
        ({"eos_token": "<s>"}, ["<unk>"], "<unk>"),
        (None, ["1"], "<s>"),
    ],
)
def test_the_token_that_ends_a_document(
    source: Path, tmp_path: Path, config: object, options: list[str], end: str
) -> None:
    folder = write(tmp_path / "tokenizer", build("sentencepiece"), config)
    asked = {"end_of_document": options[0]} if options else {}
    manifest = make_set(tmp_path / "shards", source, tokenizer=folder, max_documents=3, **asked)
    wanted = load_reference("sentencepiece").token_to_id(end)
    assert manifest.end_of_text == wanted
    assert {ids[-1] for ids in read_ids(tmp_path / "shards").values()} == {wanted}


def name_nothing(raw: dict[str, Any]) -> None:
    """A tokenizer whose special tokens have names of their own."""
    del raw["model"]["vocab"]["</s>"]
    raw["model"]["vocab"]["<stop>"] = 2
    raw["added_tokens"][2]["content"] = "<stop>"


def merge_a_special(raw: dict[str, Any]) -> None:
    raw["added_tokens"].append(special("th", raw["model"]["vocab"]["th"]))


NO_TOKENIZER = [
    (b"\x0a\x0b\x08<unk>\xff", "not valid JSON"),
    (build_gpt2_json()[:5000], "not valid JSON"),
    ("[1]", "expected a JSON object, not a list; expected a tokenizer.json"),
    ("{}", "is not a tokenizer.json (model is missing"),
    ('{"model": {"type": "BPE"}}', "`tokenizers` cannot read it ("),
    ('{"model": {"type": "BPE", "vocab": 1, "merges": 5}}', "`tokenizers` cannot read it ("),
    ('{"model": {"type": "Nobody\'s"}}', "`tokenizers` cannot read it ("),
    ('{"model": {}, "added_tokens": [{"content": 1}]}', "is not a tokenizer.json (added_tokens[0]"),
]


@pytest.mark.parametrize(("content", "reason"), NO_TOKENIZER)
def test_what_is_no_tokenizer_is_refused(
    source: Path, tmp_path: Path, content: str | bytes, reason: str
) -> None:
    folder = write(tmp_path / "tokenizer", content)
    line = refuse(tmp_path / "shards", source, "--tokenizer", folder)
    assert line.startswith(f"velocity: {folder / 'tokenizer.json'}: ")
    assert reason in line
    assert not (tmp_path / "shards/tokenizer.json").exists()


def test_what_the_options_cannot_mean_is_refused(
    source: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/tokenizer.model").write_bytes(b"\x0a")
    own = write(tmp_path / "own", change("sentencepiece", name_nothing))
    merged = write(tmp_path / "merged", change("bpe_32k", merge_a_special))
    other = write(tmp_path / "other", build("sentencepiece"), {"eos_token": "not there"})
    refused = [
        ((tmp_path / "old",), f"{tmp_path / 'old'}: has no tokenizer.json; convert it with"),
        (("nowhere",), "--tokenizer is 'nowhere': no such file or folder; expected gpt2, a"),
        (("no/such/folder",), "--tokenizer is 'no/such/folder': no such file or folder; exp"),
        (("",), "--tokenizer is empty; name what is meant, or leave the option out"),
        ((own,), "with --end-of-document: <unk> (0), <s> (1), <stop> (2)"),
        ((other,), "names the eos_token 'not there', which is no special token of it; name one"),
        ((merged,), "its merges make the special token 'th' of text that spells it"),
        ((own, "--end-of-document", "the"), "--end-of-document is 'the', which is no special"),
        ((own, "--end-of-document", "3"), "expected one of: <unk> (0), <s> (1), <stop> (2)"),
        (
            (folders["gpt2"], "--begin-of-document", "<s>"),
            "--begin-of-document is '<s>', which is no special token of",
        ),
        (
            (folders["unigram"], "--encoder", "fastokens"),
            "--encoder is fastokens: fastokens cannot encode with this tokenizer (",
        ),
    ]
    for options, reason in refused:
        assert reason in refuse(tmp_path / "shards", source, "--tokenizer", *options)
    code, _, errors = velocity(
        "prep", "--out", tmp_path / "shards", "--finish", "--tokenizer", "gpt2"
    )
    assert (code, "--tokenizer: --finish uses the sources and options" in errors) == (1, True)
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(1 << 30)
    assert "is larger than" in refuse(tmp_path / "shards", source, "--tokenizer", large)


def cut_and_fill(raw: dict[str, Any]) -> None:
    """What a tokenizer may say for training a model, and must not do to documents."""
    raw["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    raw["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    raw["model"]["dropout"] = 0.5


def test_documents_are_neither_cut_nor_filled_nor_split_at_random(
    source: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    folder = write(tmp_path / "tokenizer", change("bpe_32k", cut_and_fill))
    said: list[str] = []
    prepare(make_request(tmp_path / "shards", source, tokenizer=folder), said.append)
    assert any("truncation, padding, dropout would change documents" in line for line in said)
    make_set(tmp_path / "plain", source, tokenizer=folders["bpe_32k"])
    assert read_ids(tmp_path / "shards") == read_ids(tmp_path / "plain")
    stored = json.loads((tmp_path / "shards/tokenizer.json").read_text())
    assert (stored["truncation"], stored["padding"], stored["model"]["dropout"]) == (None,) * 3


def test_another_tokenizer_in_a_set_is_refused(
    source: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    out = tmp_path / "shards"
    make_set(out, source, tokenizer=folders["bpe_32k"], max_documents=5)
    before = set_bytes(out)
    again = ["--max-documents", "5"]
    line = refuse(out, source, *again)
    assert "tokenizer was custom, is now gpt2; the token after each document was 32767" in line
    line = refuse(out, source, *again, "--tokenizer", folders["llama3"])
    assert "the tokenizer (custom) is different; the token after" in line
    same = [*again, "--tokenizer", folders["bpe_32k"]]
    line = refuse(out, source, *same, "--begin-of-document", "<|end|>")
    assert "the token before each document was None, is now 32767" in line
    assert velocity("prep", "--out", out, "--input", source, *same)[0] == 0
    assert set_bytes(out) == before


def test_a_plan_under_which_nothing_was_done_binds_no_tokenizer(
    source: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    out = tmp_path / "shards"
    make_set(out, source, tokenizer=folders["sentencepiece"])
    for path in [out / "manifest.json", *out.glob("*-0*"), *(out / ".prep/units").iterdir()]:
        path.unlink()
    assert make_set(out, source, tokenizer=folders["bpe_32k"]).vocab_size == 32768
    assert (out / "tokenizer.json").read_text() == build("bpe_32k")
    strange = tmp_path / "model"
    write(strange, "{}")
    assert "remove it, or choose another --out" in refuse(strange, source)
    assert (strange / "tokenizer.json").read_text() == "{}"


def test_what_is_appended_is_encoded_with_the_tokenizer_of_the_set(
    source: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    out, more = tmp_path / "shards", write_jsonl(tmp_path / "b.jsonl", ["some more", "and more"])
    options = {"tokenizer": folders["llama3"], "begin_of_document": "130000"}
    own = {"validation_fraction": "0", "encoder": "tokenizers"}
    make_set(out, source, **options, **own)
    request = make_request(out, more, task="append", **own)
    for wrong, reason in (
        (["--tokenizer", folders["bpe_32k"]], "was made with another tokenizer: tokenizer was cu"),
        (["--end-of-document", "130002"], "the token after each document was 130001, is now 1300"),
    ):
        line = refuse(out, more, "--append", "--validation-fraction", "0", *wrong)
        assert reason in line
        assert line.endswith("what is appended is encoded with the set's own")
    manifest = append_sources(request, lambda line: None)
    assert manifest.content["tokenizer"]["begin_of_text"] == 130_000
    shards = open_shards(out)
    stream = shards.stream("train")
    reference = load_reference("llama3")
    expected = [
        i
        for text in ("some more", "and more")
        for i in (130_000, *reference.encode(text, add_special_tokens=False).ids, 130_001)
    ]
    first = stream.num_tokens - len(expected)
    assert stream.read(first, len(expected)).tolist() == expected
    assert [fault for _, fault in verify_shards(out) if fault] == []


def test_a_text_that_a_tokenizer_cannot_encode_is_named(tmp_path: Path) -> None:
    words = {"model": {"type": "WordLevel", "vocab": {"one": 0, "two": 1}, "unk_token": "[UNK]"}}
    added = [special("<eos>", 2)]
    raw = words | {"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": added}
    folder = write(tmp_path / "tokenizer", json.dumps(raw))
    path = write_jsonl(tmp_path / "a.jsonl", ["one two", "two three"])
    line = refuse(tmp_path / "shards", path, "--tokenizer", folder)
    assert "a.jsonl, line 2: the tokenizer cannot encode 'two three' (" in line


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def test_a_tokenizer_of_the_hub_is_pinned_and_asked_for_once(
    hub: HubServer, source: Path, tmp_path: Path
) -> None:
    files = {
        "tokenizer.json": build("sentencepiece").encode(),
        "tokenizer_config.json": b'{"eos_token": "<s>"}',
    }
    commit = hub.commit("models/owner/name", files)
    hub.fail("resolve", Fault(flip_byte=50), method="GET")
    hub.fail("tokenizer.json", Fault(status=503))
    command = ["velocity", "prep", "--out", "shards", "--input", str(source), "--workers", "1"]

    def run(*more: str) -> Any:
        return run_forked([*command, *more], tmp_path, hub.environment(tmp_path / "home"))

    made = run("--tokenizer", "owner/name")
    assert made.returncode == 0, made.stderr
    manifest = read_manifest(tmp_path / "shards")
    assert manifest.content["tokenizer"]["name"] == "owner/name"
    assert manifest.end_of_text == 1
    plan = json.loads((tmp_path / "shards/.prep/plan.json").read_text())["content"]
    assert plan["tokenizer"]["hub"]["revision"] == commit

    hub.commit("models/owner/name", {"tokenizer.json": build("bpe_32k").encode()})
    asked = len(hub.requests)
    (tmp_path / "shards/manifest.json").unlink()
    again = run("--tokenizer", "owner/name")
    assert again.returncode == 0, again.stderr
    assert len(hub.requests) == asked
    assert read_manifest(tmp_path / "shards").dataset_id == manifest.dataset_id
    (tmp_path / "shards/tokenizer.json").unlink()
    assert run("--tokenizer", "owner/name").returncode == 0
    assert (tmp_path / "shards/tokenizer.json").read_bytes() == files["tokenizer.json"]
    other = run("--tokenizer", f"owner/name@{commit}")
    assert other.returncode == 1
    assert f"the tokenizer's revision was the newest, is now {commit}" in other.stderr


def test_what_the_hub_does_not_give_is_one_line(
    hub: HubServer, source: Path, tmp_path: Path
) -> None:
    hub.commit("models/owner/none", {"config.json": b"{}"})
    hub.commit("models/owner/gated", {"tokenizer.json": b"{}"}, gated=True)
    hub.commit("models/owner/bad", {"tokenizer.json": b"{}"})
    hub.commit("owner/dataset", {"tokenizer.json": b"{}"})
    for words, reason in {
        "owner/none": "owner/none: has no tokenizer.json; convert it with `transformers`",
        "owner/gated": f"owner/gated: is gated; accept its terms at {hub.url}/owner/gated, then",
        "owner/bad": "owner/bad: tokenizer.json: is not a tokenizer.json (model is missing",
        "owner/none@v9": "owner/none: no revision 'v9'; see",
        "owner/dataset": "owner/dataset: no such model at http",
    }.items():
        command = ["velocity", "prep", "--out", "out", "--input", str(source), "--tokenizer", words]
        made = run_forked(command, tmp_path, hub.environment(tmp_path / "home"))
        assert made.returncode == 1
        assert made.stderr.splitlines()[-1].startswith(f"velocity: {reason}"), made.stderr
