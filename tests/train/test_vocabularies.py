"""Any tokenizer, end to end: a set is trained on, saved, resumed, sampled, traced and exported."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.checkpoints.folder import load_model
from model.checkpoints.seal import verify
from model.convert.older import convert
from model.decode.settings import Settings
from model.generate import load_generator
from prep.quickstart import measure_unigram_entropy
from shards.documents import Sidecars, find_documents, match_hash
from shards.order import SampleOrder
from shards.reader import open_shards
from shards.tokenizer import parse_tokenizer
from tests.commands import velocity
from tests.runs import read_metrics, run_small
from tests.texts import make_texts, write_jsonl
from tests.vocabularies import NAMES, build
from train.batches import Batches, Dealing

GREEDY = Settings(do_sample=False, max_new_tokens=8)
# The token that ends a document, and how many bytes an id has.
SHAPES = {
    "gpt2": ("<|endoftext|>", 2),
    "bpe_32k": ("<|end|>", 2),
    "llama3": ("<|end_of_text|>", 4),
    "sentencepiece": ("</s>", 2),
    "unigram": ("</s>", 2),
}
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|end|>", "<s>", "</s>", "<unk>", "<pad>")
TEXTS = (
    "Once upon a time, naïve 北京 🙂",
    "  two  spaces\n\n\tand tabs ",
    "a",
    *SPECIAL,
    *(f"before{name} after {name}{name}" for name in SPECIAL),
)


@dataclass(frozen=True)
class Trained:
    """A set made with one of the shapes, and a small run on it."""

    name: str
    shards: Path
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "checkpoint-6"

    @property
    def tokenizer(self) -> Tokenizer:
        """The set's, as it is: prep hides special tokens from one of another kind than BPE."""
        return parse_tokenizer(build(self.name))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def read_ids(self, text: str) -> list[int]:
        """What prep made of one of the texts of the set."""
        doc_hash = hashlib.sha256(text.encode()).hexdigest()[:32]
        shards = open_shards(self.shards)
        split, document = next(find_documents(shards, match_hash(doc_hash)))
        ids: list[int] = shards.stream(split).read(document.start, document.num_tokens).tolist()
        return ids[:-1]

    def is_misread(self, text: str) -> bool:
        """Whether the model finds a special token where a text spells it, but for prep."""
        return self.name == "unigram" and any(name in text for name in ("<pad>", "</s>", "<unk>"))

    def read_json(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.checkpoint / name).read_text())
        return values


def make_set(folder: Path, name: str, *options: str) -> Path:
    """A set whose texts spell special tokens, too."""
    tokenizer, shards = folder / f"{name}.json", folder / "shards"
    tokenizer.write_text(build(name))
    source = write_jsonl(folder / "source.jsonl", [*make_texts(60), *TEXTS])
    code, _, errors = velocity(
        *("prep", "--input", source, "--out", shards, "--tokenizer", tokenizer, *options),
        *("--validation-fraction", "0.2", "--workers", 1, "--encoder", "tokenizers"),
    )
    assert code == 0, errors
    assert f" -m train --config tiny data.shards={shards}\n" in errors
    return shards


@pytest.fixture(scope="module", params=[name for name in NAMES if name != "gpt2"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    found = Trained(request.param, make_set(folder, request.param), folder)
    run_small(found.shards, folder, training__num_training_steps=6, training__save_steps=3)
    return found


def test_the_model_has_the_ids_of_the_set(trained: Trained) -> None:
    num_ids = trained.tokenizer.get_vocab_size()
    manifest = open_shards(trained.shards).manifest
    assert (manifest.vocab_size, manifest.token_bytes) == (num_ids, SHAPES[trained.name][1])
    assert load_model(trained.checkpoint).config.vocab_size == num_ids
    assert trained.read_json("config.json")["vocab_size"] == num_ids
    assert trained.read_json("run_config.json")["model"]["vocab_size"] == num_ids
    losses = list(read_metrics(trained.folder).values())
    assert losses[0] == pytest.approx(np.log(num_ids), rel=0.02)
    assert losses[-1] < losses[0]


def test_the_trainer_reads_the_ids_that_prep_wrote(trained: Trained) -> None:
    """Ids above 65,535 too, which another width would cut."""
    stream = open_shards(trained.shards).stream("train", checks_first_reads=True)
    ids = np.fromfile(trained.shards / "train-00000.bin", f"<u{SHAPES[trained.name][1]}")
    order = SampleOrder(stream.num_tokens, 16, seed=1)
    batches = Batches(stream, order, Dealing(6, 2, 0, 1), torch.device("cpu"), 0)
    try:
        starts = iter(order.starts(np.arange(6)))
        for tokens, targets, _ in batches.next_step():
            assert tokens.dtype == targets.dtype == torch.int64
            for row, next_row, start in zip(tokens, targets, starts, strict=False):
                assert row.tolist() == ids[start : start + 16].tolist()
                assert next_row.tolist() == ids[start + 1 : start + 17].tolist()
    finally:
        batches.close()
    assert (ids.max() > 65_535) == (SHAPES[trained.name][1] == 4)
    shares = np.unique(ids, return_counts=True)[1] / len(ids)
    entropy = measure_unigram_entropy(open_shards(trained.shards))
    assert entropy == pytest.approx(-(shares * np.log(shares)).sum())


def test_a_run_that_was_stopped_goes_on_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(
        trained.folder / "checkpoints" / "checkpoint-3", tmp_path / "checkpoints" / "checkpoint-3"
    )
    run_small(trained.shards, tmp_path, training__num_training_steps=6)
    again = load_file(tmp_path / "checkpoints" / "checkpoint-6" / "model.safetensors")
    whole = load_file(trained.checkpoint / "model.safetensors")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_transformers_makes_the_ids_that_prep_made(trained: Trained) -> None:
    """Where text is only text; it writes special tokens where it is told that it may."""
    tokenizer = AutoTokenizer.from_pretrained(trained.checkpoint)
    generator = load_generator(trained.checkpoint, "cpu")
    added = trained.tokenizer.get_added_tokens_decoder()
    specials = {i for i, token in added.items() if token.special}
    for text in TEXTS:
        ids = trained.read_ids(text)
        assert not specials & set(ids)
        if not trained.is_misread(text):
            assert tokenizer(text, split_special_tokens=True)["input_ids"] == ids
            assert generator.tokenizer.encode(text).ids == ids
        if "<" not in text:
            assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == generator.tokenizer.decode(ids, skip_special_tokens=False)
    end = trained.tokenizer.token_to_id(SHAPES[trained.name][0])
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == end
    assert trained.read_json("config.json")["eos_token_id"] == end
    assert trained.read_json("generation_config.json")["eos_token_id"] == end
    assert tokenizer("Hi" + tokenizer.eos_token)["input_ids"][-1] == end


def test_transformers_computes_and_writes_the_same(trained: Trained) -> None:
    llama = AutoModelForCausalLM.from_pretrained(trained.checkpoint)
    generator = load_generator(trained.checkpoint, "cpu")
    for prompt in ("Once upon", ""):
        (completion,) = generator.complete([prompt], GREEDY)
        given = torch.tensor([completion.tokens[: completion.num_prompt_tokens]])
        assert given[0].tolist() == (trained.encode(prompt) or [generator.end_of_text])
        with torch.no_grad():
            ours, theirs = generator.model(given), llama(given).logits
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
            greedy = dict.fromkeys(("temperature", "top_k", "top_p"))
            written = llama.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=8,
                do_sample=False,
                **greedy,
            )
        assert list(completion.tokens) == written[0].tolist()


def test_the_commands_take_the_set_and_its_run(trained: Trained, tmp_path: Path) -> None:
    shards, checkpoints = trained.shards, trained.folder / "checkpoints"
    code, out, errors = velocity("shards", "verify", shards)
    assert (code, errors) == (0, ""), out
    code, out, _ = velocity("shards", "trace", shards, "--run", checkpoints, "--step", 2)
    assert code == 0
    assert "source.jsonl" in out
    [document] = Sidecars(open_shards(shards), "train").between(0, 1)
    code, out, _ = velocity(
        *("shards", "trace", shards, "--run", checkpoints, "--doc-hash", document.doc_hash)
    )
    assert code == 0, out
    code, out, errors = velocity("shards", "export", shards, tmp_path / "megatron")
    assert code == 0, errors
    code, out, errors = velocity(
        *("sample", "--ckpt", checkpoints, "--prompt", "Once upon", "--device", "cpu"),
        *("--max-new-tokens", 5, "--temperature", 0),
    )
    assert code == 0, errors
    (text,) = load_generator(checkpoints, "cpu").generate(
        "Once upon", max_new_tokens=5, temperature=0
    )
    assert out == text + "\n"


def test_a_checkpoint_of_today_has_nothing_to_convert(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already in the current format"):
        convert(trained.checkpoint, tmp_path / "new", "")
    verify(trained.checkpoint)


def test_a_run_does_not_go_on_with_the_set_of_another_tokenizer(
    trained: Trained, small_shards: Path
) -> None:
    with pytest.raises(ValueError, match="was trained with dataset_id=") as caught:
        run_small(small_shards, trained.folder)
    assert "\n" not in str(caught.value)
    for number in (50256, 50304):
        with pytest.raises(ValueError, match=f"has 50257 ids, model.vocab_size is {number}; set"):
            run_small(small_shards, trained.folder, model__vocab_size=number)


def test_what_begins_each_document_begins_each_prompt(tmp_path: Path) -> None:
    shards = make_set(tmp_path, "sentencepiece", "--begin-of-document", "<s>")
    run_small(shards, tmp_path, training__num_training_steps=2)
    folder = tmp_path / "checkpoints" / "checkpoint-2"
    begin, end = 1, 2
    stream = open_shards(shards).stream("train")
    for document in Sidecars(open_shards(shards), "train").between(0, 300):
        ids = stream.read(document.start, document.num_tokens).tolist()
        assert (ids[0], ids[-1]) == (begin, end)
        assert not {begin, end} & {*ids[1:-1]}

    generator, tokenizer = load_generator(folder, "cpu"), AutoTokenizer.from_pretrained(folder)
    plain = parse_tokenizer(build("sentencepiece"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (begin, end)
    for text in ("", "Once upon", "a <s> that is text"):
        expected = [begin, *plain.encode(text).ids]
        (completion,) = generator.complete([text], GREEDY)
        assert list(completion.tokens[: completion.num_prompt_tokens]) == expected
        assert tokenizer(text, split_special_tokens=True)["input_ids"] == expected
        assert completion.text.startswith(text)
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    for values in (config, generation):
        assert (values["bos_token_id"], values["eos_token_id"]) == (begin, end)
