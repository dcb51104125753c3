"""Token files of other tokenizers than GPT-2's: the set is what prep makes of the texts."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prep.foreign.request import ImportRequest
from prep.foreign.run import import_tokens
from prep.tokenizer.encoder import Encoder
from prep.tokenizer.identity import SetTokenizer
from shards.exchange.export import export_megatron
from shards.format import Manifest, read_manifest
from shards.inspect.stats import measure_set
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.foreign import read_documents, read_tokens
from tests.texts import make_texts
from tests.tokenized import encode, load_plain, write_set
from tests.vocabularies import build, special

TEXTS = [*make_texts(60), "🙂 at the start", "two  spaces\n\n\tand tabs   "]


def identify(tokenizer_json: str, end: str, begin: str | None = None) -> SetTokenizer:
    tokenizer = load_plain(tokenizer_json)
    end_id = tokenizer.token_to_id(end)
    assert end_id is not None
    sha256 = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    begin_id = None if begin is None else tokenizer.token_to_id(begin)
    return SetTokenizer("test", sha256, 1 + max(tokenizer.get_vocab().values()), end_id, begin_id)


def bring_in(
    out: Path, file: Path, name: str, end: str, begin: str | None = None, **options: Any
) -> Manifest:
    tokenizer = out.parent / f"{name}.json"
    tokenizer.write_text(build(name), encoding="utf-8")
    request = ImportRequest(
        out,
        (str(file),),
        tokenizer=str(tokenizer),
        end_of_document=end,
        begin_of_document=begin,
        **options,
    )
    return import_tokens(request, lambda line: None)


def encode_all(name: str) -> list[list[int]]:
    tokenizer = load_plain(build(name))
    return [encode(tokenizer, text) for text in TEXTS]


def check(folder: Path, ids: list[list[int]]) -> None:
    """The set is whole, and has these ids and the hashes and sizes of the texts."""
    assert [fault for _, fault in verify_shards(folder) if fault] == []
    assert read_tokens(folder) == [i for document in ids for i in document]
    hashes = [hashlib.sha256(text.encode()).digest()[:16] for text in TEXTS]
    assert [row["doc_hash"] for row in read_documents(folder)] == hashes
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    manifest = read_manifest(folder)
    assert manifest.audit["text_bytes"] == num_bytes
    assert measure_set(open_shards(folder)).total.text_bytes == num_bytes
    assert json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]


def test_what_is_exported_for_megatron_comes_back(tmp_path: Path) -> None:
    """Ids of int32, which is what Megatron has for large vocabularies."""
    end, begin = "<|end_of_text|>", "<|begin_of_text|>"
    write_set(tmp_path / "set", build("llama3"), TEXTS, end, begin)
    export_megatron(open_shards(tmp_path / "set"), "train", tmp_path / "train")
    bring_in(tmp_path / "back", tmp_path / "train", "llama3", end, begin)
    before, after = read_documents(tmp_path / "set"), read_documents(tmp_path / "back")
    assert [row["doc_hash"] for row in after] == [row["doc_hash"] for row in before]
    assert read_tokens(tmp_path / "back") == read_tokens(tmp_path / "set")
    assert read_manifest(tmp_path / "back").token_bytes == 4


def write_llama3(path: Path, tokens: list[int], magic: int = 20240801, version: int = 7) -> Path:
    """As llm.c writes ids of the Llama 3 tokenizer."""
    header = struct.pack("<256i", magic, version, len(tokens), *[0] * 253)
    path.write_bytes(header + np.array(tokens, "<u4").tobytes())
    return path


def test_files_of_llmc_for_llama3(tmp_path: Path) -> None:
    """There, <|begin_of_text|> stands before each document and separates them."""
    mark = "<|begin_of_text|>"
    mark_id = identify(build("llama3"), mark).end_of_text
    ids = encode_all("llama3")
    path = write_llama3(tmp_path / "a.bin", [i for part in ids for i in [mark_id, *part]])
    bring_in(tmp_path / "set", path, "llama3", mark)
    check(tmp_path / "set", [[*part, mark_id] for part in ids])
    with pytest.raises(ValueError, match=r"holds llm.c's ids of the Llama 3 tokenizer .magic 2024"):
        bring_in(tmp_path / "other", path, "gpt2", "<|endoftext|>")
    old = write_llama3(tmp_path / "b.bin", [mark_id, 5], version=1)
    with pytest.raises(ValueError, match=r"is of llm.c version 1; expected 7"):
        bring_in(tmp_path / "other", old, "llama3", mark)


@pytest.mark.parametrize(
    ("name", "end", "begin"),
    [
        ("llama3", "<|end_of_text|>", None),
        ("bpe_32k", "<|end|>", None),
        ("sentencepiece", "</s>", "<s>"),
        ("unigram", "</s>", None),
    ],
)
def test_ids_without_a_header_are_as_wide_as_the_tokenizer_needs(
    tmp_path: Path, name: str, end: str, begin: str | None
) -> None:
    identity = identify(build(name), end, begin)
    before = [] if identity.begin_of_text is None else [identity.begin_of_text]
    ids = [[*before, *part, identity.end_of_text] for part in encode_all(name)]
    path = tmp_path / "train.bin"
    np.array([i for part in ids for i in part], f"<u{identity.token_bytes}").tofile(path)
    bring_in(tmp_path / "set", path, name, end, begin)
    check(tmp_path / "set", ids)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train.bin: has [\d,]+ bytes; expected uint(16|32) ids"):
        bring_in(tmp_path / "other", path, name, end, begin)


def test_ids_of_texts_that_spell_special_tokens_are_the_tokenizers(tmp_path: Path) -> None:
    """As prep makes them: to it the special tokens are hidden, which a Unigram model would find."""
    texts = [f"{text} </s> is text, and so is <pad>" for text in TEXTS]
    ids, sizes = Encoder(build("unigram"), "tokenizers").encode(pa.array(texts, pa.large_string()))
    end = identify(build("unigram"), "</s>").end_of_text
    path = tmp_path / "train.bin"
    np.insert(ids, np.cumsum(sizes), end).astype("<u2").tofile(path)
    bring_in(tmp_path / "set", path, "unigram", "</s>")
    hashes = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
    assert [row["doc_hash"] for row in read_documents(tmp_path / "set")] == hashes


@pytest.mark.parametrize("first", [20240520 % 65536, 20240522 % 65536, 20240801 % 65536])
def test_ids_without_a_header_that_begin_like_llmcs_are_named_so(
    tmp_path: Path, first: int
) -> None:
    """The magic is two ids that a tokenizer with 55,433 or more of them may have."""
    raw = json.loads(build("llama3"))
    vocab = {token: i for i, token in enumerate([*raw["model"]["vocab"]][:56_000])}
    raw["model"] |= {"vocab": vocab, "merges": []}
    raw["added_tokens"] = [special("<|end|>", 56_000)]
    raw["post_processor"] = None
    (tmp_path / "t.json").write_text(json.dumps(raw), encoding="utf-8")
    path = tmp_path / "train.bin"
    np.array([first, 308, *range(600), 56_000], "<u2").tofile(path)
    request = ImportRequest(tmp_path / "set", (str(path),), tokenizer=str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match=r"; if it has no header, .* say --format nanogpt"):
        import_tokens(request, lambda line: None)


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    ids = encode_all("sentencepiece")
    path = tmp_path / "train.bin"
    np.array([i for part in ids for i in [*part, 32_767]], "<u2").tofile(path)
    with pytest.raises(ValueError, match=r"its ids are not the tokenizer's .custom.: of"):
        bring_in(tmp_path / "set", path, "bpe_32k", "<|end|>")
    with pytest.raises(ValueError, match=r"is the id 32767; the tokenizer .custom. has 0"):
        bring_in(tmp_path / "set", path, "sentencepiece", "</s>", add_end_of_text=True)
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_beginning_that_only_some_documents_have_is_refused(tmp_path: Path) -> None:
    identity = identify(build("sentencepiece"), "</s>", "<s>")
    ids = [[1, 70, 2], [1, 2], [2], [71, 2]]
    assert (identity.begin_of_text, identity.end_of_text) == (1, 2)
    path = tmp_path / "train.bin"
    np.array([i for part in ids for i in part], "<u2").tofile(path)
    with pytest.raises(ValueError, match="document 3 does not begin with the id 1, as --begin-of"):
        bring_in(tmp_path / "set", path, "sentencepiece", "</s>", "<s>")


def test_a_set_made_with_another_tokenizer_is_not_the_same(tmp_path: Path) -> None:
    ids = encode_all("bpe_32k")
    path = tmp_path / "train.bin"
    np.array([i for part in ids for i in [*part, 32_767]], "<u2").tofile(path)
    options = {"add_end_of_text": True}
    made = bring_in(tmp_path / "set", path, "bpe_32k", "<|end|>", **options)
    again = bring_in(tmp_path / "set", path, "bpe_32k", "<|end|>", **options)
    assert again.dataset_id == made.dataset_id
    with pytest.raises(ValueError, match="already holds a set, made of other files or with other"):
        bring_in(tmp_path / "set", path, "gpt2", "<|endoftext|>", **options)
