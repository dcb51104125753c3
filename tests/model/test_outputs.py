"""`velocity sample --json` and `--all`: texts for scripts, and over all checkpoints of a run."""

import json
import subprocess
import weakref
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.generate import load_generator
from model.sample.json_lines import describe_checkpoint
from model.sample.over_run import load_each, score_continuation
from tests.commands import velocity
from tests.model.test_checkpoint_folder import flip_byte
from tests.tiny import TOKENIZER_JSON, make_model

STEPS = (5, 20, 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    for step in STEPS:
        path = folder / f"checkpoint-{step}"
        save_model(path, make_model(seed=step), TOKENIZER_JSON)
        seal(path)
    return folder


def sample(*words: object) -> tuple[str, str]:
    code, output, errors = velocity("sample", *words, "--device", "cpu", "--max-new-tokens", 6)
    assert code == 0, errors
    return output, errors


def read_lines(output: str) -> list[dict[str, Any]]:
    assert output.isascii()
    return [json.loads(line) for line in output.splitlines()]


def test_json_says_what_writes_the_text_again(run: Path) -> None:
    words = ("--ckpt", run, "--prompt", "naïve", "--prompt", "A", "--num-samples", 2, "--json")
    output, errors = sample(*words, "--temperature", 1.5)
    found = read_lines(output)
    assert errors == ""
    assert [(text["prompt"], text["sample"]) for text in found] == [
        *(("naïve", 0), ("naïve", 1), ("A", 0), ("A", 1))
    ]
    [first, *_] = found
    generator = load_generator(run / "checkpoint-100", device="cpu")
    settings = Settings(**first["settings"], seed=first["seed"])
    again = generator.complete(["naïve", "A"], settings)
    assert [text["text"] for text in found] == [completion.text for completion in again]
    assert [tuple(text["tokens"]) for text in found] == [c.tokens for c in again]
    assert [text["finish_reason"] for text in found] == [c.finish_reason for c in again]
    assert first["num_prompt_tokens"] == again[0].num_prompt_tokens
    sealed = json.loads((run / "checkpoint-100" / "checksums.json").read_text())["files"]
    assert first["checkpoint"] == {
        "folder": str(run / "checkpoint-100"),
        "step": 100,
        "sha256": sealed["model.safetensors"]["sha256"],
    }
    assert "logprobs" not in first


def test_json_has_log_probabilities_where_asked(run: Path) -> None:
    output, _ = sample("--ckpt", run, "--prompt", "A", "--json", "--logprobs", 2, "--seed", 1)
    [text] = read_lines(output)
    assert text["seed"] == 1
    assert [found["token"] for found in text["logprobs"]] == text["tokens"][1:]
    spelled = "".join(found["text"] for found in text["logprobs"])
    assert len(spelled) >= 6
    assert all(len(found["alternatives"]) == 2 for found in text["logprobs"])
    best = text["logprobs"][0]["alternatives"]
    assert best[0]["logprob"] >= max(best[1]["logprob"], text["logprobs"][0]["logprob"])


def test_a_folder_from_elsewhere_has_no_step_and_no_sum(tmp_path: Path) -> None:
    save_model(tmp_path / "gpt", make_model(), TOKENIZER_JSON)
    output, _ = sample("--ckpt", tmp_path / "gpt", "--json", "--num-beams", 2)
    [text] = read_lines(output)
    assert text["checkpoint"] == {"folder": str(tmp_path / "gpt"), "step": None, "sha256": None}
    assert text["score"] < 0
    assert text["dtype"] is None
    output, _ = sample("--ckpt", tmp_path / "gpt", "--json", "--dtype", "bf16")
    [text] = read_lines(output)
    assert text["dtype"] == "bf16"


def test_weights_in_several_files_have_one_sum(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in (*names, "config.json", "model.safetensors.index.json"):
        (folder / name).write_text(name)
    seal(folder)
    process = subprocess.run(
        "sha256sum model-*.safetensors | sha256sum",
        shell=True, cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = describe_checkpoint(folder)
    assert told == {"folder": str(folder), "step": 3, "sha256": process.stdout.split()[0]}


def test_all_writes_with_every_checkpoint_under_its_step(run: Path) -> None:
    words = ("--ckpt", run, "--all", "--prompt", "The", "--seed", 3)
    output, _ = sample(*words)
    headings = [line for line in output.splitlines() if line.startswith("--- step")]
    assert [line.split()[2].rstrip(":") for line in headings] == ["5", "20", "100"]
    for step in STEPS:
        own, _ = sample("--ckpt", run / f"checkpoint-{step}", "--prompt", "The", "--seed", 3)
        assert f" ---\n{own}" in output
    lines = read_lines(sample(*words, "--json")[0])
    assert [text["checkpoint"]["step"] for text in lines] == [*STEPS]
    assert len({text["text"] for text in lines}) == 3


def test_a_run_is_never_in_memory_as_two_models(run: Path) -> None:
    alive: weakref.WeakSet[Generator] = weakref.WeakSet()

    def load(folder: Path) -> Generator:
        assert not alive
        generator = load_generator(folder, "cpu")
        alive.add(generator)
        return generator

    num_loaded = 0
    for generator in load_each(run, load, print):
        num_loaded += len(alive)
        del generator
    assert num_loaded > 1


def test_all_says_how_likely_a_continuation_is(run: Path) -> None:
    words = ("--ckpt", run, "--all", "--prompt", "The quick", "--continuation", " brown fox")
    lines = read_lines(sample(*words, "--json")[0])
    for text in lines:
        generator = load_generator(Path(text["checkpoint"]["folder"]), device="cpu")
        scored = generator.score("The quick brown fox")
        start = len(generator.tokenizer.encode("The quick").ids)
        expected = sum(found.logprob or 0.0 for found in scored[start:])
        assert text["continuation_logprob"] == pytest.approx(expected)
        assert text["continuation_tokens"] == [found.token for found in scored[start:]]
    output, _ = sample(*words)
    assert f"of the continuation {lines[0]['continuation_logprob']:.2f} ---" in output


def test_a_continuation_is_scored_from_where_the_tokens_differ(run: Path) -> None:
    generator: Generator = load_generator(run / "checkpoint-5", device="cpu")
    for prompt, begins in (("sh", 1), (" sh", 0), ("", 0)):
        whole = generator.tokenizer.encode(prompt + "ards").ids
        assert len(whole) == len(set(whole))
        found = score_continuation(generator, prompt, "ards")
        scored = generator.score([generator.begin, *whole])[1:] if not begins else None
        expected = (scored or generator.score(whole))[begins:]
        assert found["continuation_tokens"] == whole[begins:]
        assert found["continuation_logprob"] == sum(token.logprob or 0.0 for token in expected)


def test_all_passes_over_what_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        save_model(tmp_path / f"checkpoint-{step}", make_model(), TOKENIZER_JSON)
        seal(tmp_path / f"checkpoint-{step}")
    flip_byte(tmp_path / "checkpoint-1" / "model.safetensors")
    output, errors = sample("--ckpt", tmp_path, "--all")
    assert "skipping checkpoint-1" in errors
    assert output.startswith("--- step 2: ")
    flip_byte(tmp_path / "checkpoint-2" / "model.safetensors")
    code, output, errors = velocity("sample", "--ckpt", tmp_path, "--all")
    assert (code, output) == (1, "")
    assert "no complete checkpoint to load" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--continuation", "x"], "--continuation goes with --all"),
        (["--logprobs", "2"], "--logprobs goes with --json"),
    ],
)
def test_options_that_need_another_say_so(run: Path, words: list[str], message: str) -> None:
    code, output, errors = velocity("sample", "--ckpt", run, *words)
    assert (code, output) == (1, "")
    assert message in errors
