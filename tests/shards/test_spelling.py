"""The text of ids, for vocabularies of all shapes: counted, shown and subtracted right."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from prep.copies.cut import describe_unit
from prep.units.budget import Budget
from prep.units.receipts import Audit, Receipt
from shards.edit.remove import Wanted, find_wanted, remove_documents
from shards.edit.rewrite import Rewriter
from shards.format import read_manifest
from shards.inspect.show import choose_documents, decode_document, show_window
from shards.inspect.stats import measure_set
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from shards.tokenizer import load_spelling, make_self_test, parse_tokenizer
from tests.commands import velocity
from tests.texts import make_texts
from tests.tokenized import encode, load_plain, split_of, write_set
from tests.vocabularies import build, special

# None begins with a space, which a tokenizer that puts one before each text may not keep.
TEXTS = [*make_texts(12), "🙂 at the start, 北京", "two  spaces\n\n\tand tabs   ", "Ünï—cödé"]


def add_end(tokenizer: Tokenizer) -> str:
    """The tokenizer's text with a special token <end>, which has the id after all others."""
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"].append(special("<end>", tokenizer.get_vocab_size()))
    return json.dumps(raw)


def build_spaced() -> str:
    """Byte-level BPE that puts a space before each text and leaves it there when it decodes."""
    raw = json.loads(build("bpe_32k"))
    raw["pre_tokenizer"]["add_prefix_space"] = True
    return json.dumps(raw)


def build_composed() -> str:
    """Byte-level BPE of text in Unicode's normal form C, with a second word that is a token."""
    raw = json.loads(build("bpe_32k"))
    raw["normalizer"] = {"type": "NFC"}
    raw["added_tokens"] = [
        special("café", 32_768) | {"special": False},
        special("<|end|>", 32_767),
    ]
    return json.dumps(raw)


def build_wordpiece() -> str:
    """BERT's shape: words in small letters, without accents; spaces are lost."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(make_texts(40), trainer)
    return add_end(tokenizer)


def build_words() -> str:
    """A word is a token; there is no decoder."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "of": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return add_end(tokenizer)


def build_turned() -> str:
    """Decoded by a decoder that joins equal tokens: no id stands for anything by itself."""
    tokenizer = Tokenizer.from_str(build("bpe_32k"))
    tokenizer.decoder = decoders.CTC("<none>", "|", False)
    return tokenizer.to_str()


# How each is built, its token after documents and before them.
LOSSLESS: dict[str, tuple[Callable[[], str], str, str | None]] = {
    "bpe_32k": (lambda: build("bpe_32k"), "<|end|>", None),
    "sentencepiece": (lambda: build("sentencepiece"), "</s>", "<s>"),
    "unigram": (lambda: build("unigram"), "</s>", None),
    "spaced": (build_spaced, "<|end|>", None),
}
LOSSY: dict[str, tuple[Callable[[], str], str, str | None]] = {
    "composed": (build_composed, "<|end|>", None),
    "wordpiece": (build_wordpiece, "<end>", "[UNK]"),
    "words": (build_words, "<end>", None),
    "turned": (build_turned, "<|end|>", None),
}


@dataclass(frozen=True)
class Spelled:
    """A set, and what the ids of each of its texts decode to by themselves."""

    name: str
    folder: Path
    end: str
    tokenizer: Tokenizer
    decoded: list[str]

    def count_bytes(self, numbers: Iterable[int]) -> int:
        """What some documents decode to, in bytes."""
        return sum(len(self.decoded[number].encode()) for number in numbers)


@pytest.fixture(scope="module", params=[*LOSSLESS, *LOSSY])
def spelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Spelled:
    name = str(request.param)
    builder, end, begin = (LOSSLESS | LOSSY)[name]
    tokenizer_json = builder()
    folder = tmp_path_factory.mktemp("spelled") / "set"
    write_set(folder, tokenizer_json, TEXTS, end, begin)
    tokenizer = load_plain(tokenizer_json)
    decoded = [str(tokenizer.decode(encode(tokenizer, text))) for text in TEXTS]
    if name == "spaced":
        assert all(text.startswith(" ") for text in decoded)
        decoded = [text[1:] for text in decoded]
    assert (decoded == TEXTS) == (name in LOSSLESS)
    return Spelled(name, folder, end, tokenizer, decoded)


def test_bytes_are_those_of_the_decoded_documents(spelled: Spelled) -> None:
    counted = measure_set(open_shards(spelled.folder))
    everything = range(len(TEXTS))
    assert counted.total.text_bytes == spelled.count_bytes(everything)
    assert {split: amount.text_bytes for split, amount in counted.splits.items()} == {
        split: spelled.count_bytes(n for n in everything if split_of(n) == split)
        for split in ("train", "validation")
    }
    audit = read_manifest(spelled.folder).audit
    assert (counted.total.text_bytes == audit["text_bytes"]) == (spelled.name in LOSSLESS)


def test_a_document_is_shown_as_it_decodes(spelled: Spelled) -> None:
    shards = open_shards(spelled.folder)
    for number, text in enumerate(spelled.decoded):
        url = f"https://example.com/{number}"
        [(split, document)] = choose_documents(shards, "train", None, url, None)
        shown = decode_document(shards, split, document)
        assert words_of(shown) == words_of(text)
        if spelled.name in LOSSLESS:
            assert shown == TEXTS[number]


def words_of(text: str) -> list[str]:
    return text.replace("[UNK]", "").split()


@pytest.mark.parametrize("spelled", LOSSLESS, indirect=True)
def test_windows_put_together_are_the_text(spelled: Spelled) -> None:
    """Wherever a window begins, its spaces are those of the text; a cut character is U+FFFD."""
    shards = open_shards(spelled.folder)
    num_tokens = shards.manifest.num_tokens("train")
    whole = show_window(shards, "train", 0, num_tokens)
    texts = [text for number, text in enumerate(TEXTS) if split_of(number) == "train"]
    begin = "<s>" if spelled.name == "sentencepiece" else ""
    assert whole == "".join(f"{begin}{text}{spelled.end}" for text in texts)
    tails = set(range(1, 60)) | set(range(num_tokens - 60, num_tokens))
    for start in sorted(tails):
        before = show_window(shards, "train", 0, start)
        after = show_window(shards, "train", start, num_tokens - start)
        if "\ufffd" in before:
            kept = before.rstrip("\ufffd"), after.lstrip("\ufffd")
            assert whole.startswith(kept[0])
            assert whole.endswith(kept[1])
            assert len(whole) - len(kept[0]) - len(kept[1]) == 1
        else:
            assert before + after == whole


@pytest.mark.parametrize("keeps_places", [False, True])
def test_the_audit_counts_what_is_left(
    spelled: Spelled, tmp_path: Path, keeps_places: bool
) -> None:
    folder = Path(shutil.copytree(spelled.folder, tmp_path / "set"))
    removed = [1, 7, 12]
    remove_numbers(folder, removed, keeps_places)
    total = sum(len(text.encode()) for text in TEXTS)
    assert read_manifest(folder).audit["text_bytes"] == total - spelled.count_bytes(removed)
    left = [n for n in range(len(TEXTS)) if n not in removed]
    counted = measure_set(open_shards(folder))
    assert counted.total.text_bytes == spelled.count_bytes(left)
    assert [fault for _, fault in verify_shards(folder) if fault] == []
    remove_numbers(folder, left, keeps_places)
    assert read_manifest(folder).audit["text_bytes"] == max(
        total - spelled.count_bytes(range(len(TEXTS))), 0
    )


def remove_numbers(folder: Path, numbers: list[int], keeps_places: bool) -> None:
    wanted = Wanted(urls=frozenset(f"https://example.com/{number}" for number in numbers))
    remove_documents(open_shards(folder), find_wanted(open_shards(folder), wanted), keeps_places)


def test_copies_that_are_dropped_are_no_longer_counted(spelled: Spelled, tmp_path: Path) -> None:
    """As --dedup rewrites a unit in which some texts are there twice."""
    folder, work = tmp_path / "set", tmp_path / "work"
    work.mkdir()
    tokenizer_json = (spelled.folder / "tokenizer.json").read_text(encoding="utf-8")
    begin = (LOSSLESS | LOSSY)[spelled.name][2]
    manifest = write_set(folder, tokenizer_json, [*TEXTS, *TEXTS[-3:]], spelled.end, begin)
    shard = manifest.split("train")[-1]
    rows = np.arange(shard.num_documents)[-3:]
    marks = (manifest.end_of_text, manifest.begin_of_text)
    rewriter = Rewriter(folder, work, load_spelling(folder / "tokenizer.json", *marks), False)
    rewritten = rewriter.rewrite(shard, rows, shard.name, manifest.sidecar_sha256(shard))
    audit, hashes = Audit(**manifest.audit), manifest.environment["sidecar_sha256"]
    receipt = Receipt("", 0, Budget(), False, tuple(manifest.shards), hashes, audit)
    after = describe_unit(receipt, {shard: rewritten})
    copies = range(len(TEXTS) - 3, len(TEXTS))
    assert after.audit.train == audit.train - len(copies)
    assert after.audit.text_bytes == audit.text_bytes - spelled.count_bytes(copies)


def test_stats_name_the_end_of_documents(spelled: Spelled) -> None:
    code, out, _ = velocity("shards", "stats", spelled.folder)
    assert code == 0
    assert f"tokens per document, {spelled.end} included" in out
    assert f'"{spelled.end}"' in out


def test_a_self_test_is_of_the_text_alone() -> None:
    """A post-processor's tokens are not in a set, nor what truncation and padding would do."""
    raw = json.loads(build("llama3"))
    raw["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    raw["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    raw["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    plain = load_plain(build("llama3"))
    for case in make_self_test(parse_tokenizer(json.dumps(raw))):
        assert case["ids"] == encode(plain, case["text"])
        assert plain.decode(case["ids"]) == case["text"]
