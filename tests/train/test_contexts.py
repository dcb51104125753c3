"""`velocity plan --contexts`: what windows of several lengths take, and how many are filled."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cli
from model.cache import allocate_cache
from shards.format import read_manifest
from shards.inspect.lengths import LengthCounter, count_lengths
from shards.reader import open_shards
from tests.tiny import TOKENIZER_JSON, make_tokenizer
from tests.tokenized import VALIDATION, write_set
from train.plan.contexts import count_cache_bytes
from train.settings import load_config

MODEL_1B = ("--config", "1.7b", "--gpu", "H100")
TEXTS = [f"{number}: {'lazy dogs and quick foxes ' * number}" for number in range(60)]
TRAINED = [text for number, text in enumerate(TEXTS) if number % 10 != VALIDATION]


def run(*words: str) -> str:
    done = CliRunner().invoke(cli.app, ["plan", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def plan(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("--json", *words))
    return found


def count_tokens(text: str) -> int:
    return len(make_tokenizer().encode(text).ids) + 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of rising length, a tenth of them for validation."""
    folder = tmp_path_factory.mktemp("contexts") / "set"
    write_set(folder, TOKENIZER_JSON, TEXTS, "<|endoftext|>")
    return folder


def test_longer_windows_take_what_as_many_short_ones_do_and_more_attention() -> None:
    made = plan(*MODEL_1B, "--contexts")
    contexts = {context["num_tokens"]: context for context in made["contexts"]}
    assert [*contexts] == [2048, 4096, 8192, 32768]
    for number in (1, 2, 4, 16):
        context = contexts[2048 * number]
        # Memory grows with the tokens alone, as no kernel keeps a square of scores.
        assert context["memory"] == made["memory_table"][str(number)]
        more = context["flops_per_token"] - contexts[2048]["flops_per_token"]
        assert more == 12 * 24 * 2048 * (context["num_tokens"] - 2048)  # 12 L D T.
        flops = context["flops_per_token"]
        assert context["attention_share"] == pytest.approx(
            12 * 24 * 2048 * context["num_tokens"] / flops
        )
        assert context["tokens_per_second"] == pytest.approx(0.4 * 989.4e12 / flops)
        assert context["longer_documents"] is None
    assert contexts[2048]["tokens_per_second"] == made["cost"]["tokens_per_second"]
    assert "contexts" not in plan(*MODEL_1B)


def test_a_cache_takes_what_is_said() -> None:
    config = load_config("tiny", ["model.num_key_value_heads=2", "model.head_dim=24"])
    cache = allocate_cache(config.model, 1, 100, torch.device("cpu"), torch.float16)
    assert 100 * count_cache_bytes(config) == cache.keys.nbytes + cache.values.nbytes
    words = ("--gpu-memory", "80", "--contexts", "model.num_key_value_heads=4")
    found = plan("--config", "1.7b", *words)["contexts"]
    whole = plan(*MODEL_1B, "--contexts")["contexts"]
    assert [c["cache_bytes"] * 8 for c in found] == [c["cache_bytes"] for c in whole]
    assert found[0]["tokens_per_second"] is None


def test_documents_that_are_longer_are_counted(shards: Path) -> None:
    sizes = [count_tokens(text) for text in TRAINED]
    limit = sorted(sizes)[-5]  # A document that is as long as the window is not longer.
    words = ("--config", "tiny", "--gpu-memory", "24", "--contexts", "--shards", str(shards))
    fitted = ("training.batch_size_per_device=1", f"data.max_seq_length={limit}")
    words = (*words, *fitted, "model.max_position_embeddings=4096")
    own = next(c for c in plan(*words)["contexts"] if c["num_tokens"] == limit)
    longer = [size for size in sizes if size > limit]
    assert own["longer_documents"] == len(longer) == 4
    assert own["longer_share"] == pytest.approx(sum(longer) / sum(sizes))
    where = f"num_tokens != {max(sizes)}"
    chosen = next(
        c for c in plan(*words, f"data.where={where}")["contexts"] if c["num_tokens"] == limit
    )
    assert chosen["longer_documents"] == 3
    # Rows of the table that nothing fills.
    assert plan(*words)["contexts"][-1]["longer_documents"] == 0


def test_few_long_documents_are_told_with_what_to_do(shards: Path) -> None:
    words = ("--config", "tiny", "--contexts", "--shards", str(shards))
    advice = "few documents are longer than data.max_seq_length="
    assert advice not in run(*words, "data.max_seq_length=64")
    sizes = [count_tokens(text) for text in TRAINED]
    length, share = max(sizes) - 1, max(sizes) / sum(sizes)
    output = run(*words, f"data.max_seq_length={length}", "model.max_position_embeddings=2048")
    assert (
        f"{advice}{length:,}: they have {share:.1%} of the tokens. Far positions are learned from "
        f"them; weigh them in data.mixture, with where: num_tokens > {length // 2}, or add longer "
        "ones to the set"
    ) in output
    assert "longer documents" in output
    assert "longer documents" not in run("--config", "tiny", "--contexts")


def test_of_a_packed_set_padding_is_no_document(tmp_path: Path) -> None:
    texts = ["a lazy dog " * number for number in range(1, 40)]
    write_set(tmp_path / "set", TOKENIZER_JSON, texts, "<|endoftext|>", row_tokens=500)
    counter = LengthCounter()
    count_lengths(open_shards(tmp_path / "set"), None, counter)
    lengths = counter.finish()
    manifest = read_manifest(tmp_path / "set")
    padding = sum(shard.num_paddings for shard in manifest.split("train"))
    assert padding > 0
    sizes = [count_tokens(text) for number, text in enumerate(texts) if number % 10 != VALIDATION]
    assert (lengths.num_documents, lengths.num_tokens) == (len(sizes), sum(sizes))
