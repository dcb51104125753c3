"""The benchmarks run, compare what the engines made, and print one line of JSON."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.measure import (
    OURS,
    Engine,
    Measured,
    find_version,
    make_parser,
    summarize,
    take_turns,
)
from benchmarks.prep.__main__ import compare_tokens
from benchmarks.prep.tokenizers import Ids, count_different
from benchmarks.quality.longer import find_losses
from benchmarks.train.__main__ import compare_losses
from tests.texts import make_texts, write_jsonl
from tests.tiny import make_model

ROOT = Path(__file__).parents[2]
ONE_ROUND = ("--rounds", "1", "--warmup-rounds", "0")
PACKAGES = {
    "tiktoken": ["tiktoken"],
    "tiktoken_pipeline": ["tiktoken"],
    "datasets": ["datasets"],
    "transformers": ["transformers", "accelerate"],
    "transformers_static": ["transformers"],
    "velocity_int8": [],
    "one_client": [],
    "datatrove": ["datatrove", "spacy"],
    "llama_cpp": ["llama-cpp-python", "gguf"],
    "llama_cpp_q8_0": ["llama-cpp-python", "gguf"],
}
SMALL_MODEL = ("--hidden-size", "32", "--layers", "2", "--heads", "2", "--intermediate-size", "64")


def run_benchmark(name: str, *options: str) -> dict[str, Any]:
    """What a benchmark printed: one line of JSON, and nothing else."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *ONE_ROUND, *options]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("\n") == 1
    result: dict[str, Any] = json.loads(process.stdout)
    assert result["benchmark"] == name
    return result


def check_result(result: dict[str, Any], peers: Sequence[str], figures: set[str]) -> None:
    """Every engine has its figures, or the reason why it has none."""
    measured = {OURS} | {peer for peer in peers if peer not in result["left_out"]}
    for peer in result["left_out"]:
        assert any(find_version(package) is None for package in PACKAGES[peer])
    for engine, found in result["engines"].items():
        assert (found is None) == (engine not in measured)
    for engine in measured:
        found = result["engines"][engine]
        assert found.keys() == figures
        for figure in found.values():
            assert figure["rounds"] == [figure["median"]]
            assert figure["median"] > 0
        if engine != OURS:
            assert result["ratios"][engine].keys() == figures
    assert result["engines"].keys() == {OURS, *peers}
    assert result["settings"]["rounds"] == 1
    assert result["machine"]["cores"] >= 1
    assert result["versions"]["python"]
    assert result["date"].startswith("20")
    assert str(ROOT) not in json.dumps(result)


def test_prep_makes_the_tokens_of_its_peers(tmp_path: Path) -> None:
    result = run_benchmark("prep", "--megabytes", "0.1")
    figures = {"megabytes_per_second", "tokens_per_second"}
    check_result(result, ["tiktoken_pipeline", "tiktoken", "datasets"], figures)
    assert result["checks"]["tokens_equal"]
    assert result["work"]["tokens"] > 10_000


def test_prep_reads_other_text_as_often_as_it_needs(tmp_path: Path) -> None:
    texts = ["one two", "", "<|endoftext|> is text", "\u5317\u4eac \U0001f642\n\n  x"]
    lines = [json.dumps({"words": text}) + "\n" for text in [*texts, None]]
    (tmp_path / "text.jsonl").write_text("".join(lines))
    options = ("--input", str(tmp_path), "--text-column", "words", "--megabytes", "0.001")
    result = run_benchmark("prep", *options)
    assert result["settings"]["input"] == [tmp_path.name]
    assert result["checks"]["tokens_equal"]
    assert result["work"]["passes_over_the_input"] > 10
    assert result["work"]["documents"] == 3 * result["work"]["passes_over_the_input"]


def test_prep_parts_account_for_the_whole_time(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*make_texts(300)])
    result = run_benchmark("prep.parts", "--input", str(tmp_path))
    parts = {name: found["median"] for name, found in result["engines"][OURS].items()}
    whole = parts.pop("whole")
    assert sum(parts.values()) == pytest.approx(whole, rel=1e-3)
    assert min(parts.values()) > 0


def test_prep_long_tells_rate_and_memory_by_tenths(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*make_texts(100)])
    options = ("--input", str(tmp_path / "a.jsonl"), "--passes", "20")
    result = run_benchmark("prep.long_run", *options)
    figures = {name: found["median"] for name, found in result["engines"][OURS].items()}
    assert len([name for name in figures if name.startswith("tokens_per_second_")]) == 10
    assert min(figures.values()) > 0
    assert result["work"]["units"] >= 10


def test_prep_workers_make_the_same_set(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*make_texts(300)])
    options = ("--input", str(tmp_path / "a.jsonl"), "--passes", "2")
    result = run_benchmark("prep.workers", *options)
    assert result["work"]["text_bytes"] == 2 * sum(len(text.encode()) for text in make_texts(300))
    check_result(result, ["one_worker"], {"megabytes_per_second"})
    assert result["checks"]["sets_equal"]


def test_tokenizers_tells_rate_and_exactness_of_each_encoder() -> None:
    options = ("--megabytes", "0.05", "--vocab-size", "600")
    result = run_benchmark(
        "prep.tokenizers", *options, "--tokenizer", "gpt2", "--tokenizer", "unigram"
    )
    rows = {(row["tokenizer"], row["encoder"]): row for row in result["table"]}
    for name in ("gpt2", "unigram", "own"):
        for encoder in ("fastokens", "tokenizers"):
            assert (name, encoder) in rows or f"{name}/{encoder}" in result["left_out"]
        assert rows[name, "tokenizers"]["over_tokenizers"]["median"] == 1
    for name in ("fastokens", "tokenizers", "tiktoken"):
        if find_version(name) is not None:
            assert rows["gpt2", name]["texts_with_other_ids"] == 0
    for row in rows.values():
        assert row["megabytes_per_second"]["rounds"] == [row["megabytes_per_second"]["median"]]
        assert row["megabytes_per_second"]["median"] > 0
        assert row["texts"] == result["work"]["documents"]
        assert 1 < row["bytes_per_token"] < 10
    assert result["work"]["own"]["tokens"] > 0


def test_ids_are_compared_text_by_text() -> None:
    expected = Ids(np.array([1, 2, 3, 4, 5]), np.array([2, 2, 5]))
    assert count_different(expected, expected) == 0
    assert count_different(Ids(np.array([1, 2, 9, 4, 5]), expected.ends), expected) == 1
    # The same ids, cut elsewhere.
    assert count_different(Ids(expected.ids, np.array([2, 3, 5])), expected) == 2


def test_shards_measures_verify_info_and_trace(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*make_texts(300)])
    options = ("--input", str(tmp_path / "a.jsonl"), "--units", "20")
    result = run_benchmark("shards", *options)
    figures = {name: found["median"] for name, found in result["engines"][OURS].items()}
    seconds = {"info_seconds", "trace_seconds", "start_seconds"}
    assert set(figures) == {"verify_megabytes_per_second"} | seconds
    assert min(figures.values()) > 0
    assert result["work"]["shards"] == 40


def test_near_finds_the_copies_that_were_planted() -> None:
    result = run_benchmark("prep.near", "--megabytes", "0.3")
    figures = {"signatures_megabytes_per_second", "megabytes_per_second"}
    check_result(result, ["datatrove"], figures)
    assert result["checks"][OURS]["recall"] >= 0.95
    assert result["checks"][OURS]["precision"] >= 0.95


def test_loader_reads_the_windows_of_its_peers() -> None:
    result = run_benchmark("shards.loader", "--tokens", "100000", "--seconds", "0.05")
    check_result(result, ["nanogpt", "dataloader"], {"windows_per_second", "tokens_per_second"})
    assert result["checks"]["windows_equal"]


def test_train_has_the_losses_of_trainer() -> None:
    options = ("--max-seq-length", "16", "--batch-size", "2", "--accumulation-steps", "2")
    steps = ("--steps", "3", "--warmup-steps", "1", "--threads", "1")
    result = run_benchmark("train", *SMALL_MODEL, *options, *steps)
    figures = {
        "tokens_per_second",
        "cpu_seconds_per_million_tokens",
        "peak_memory_bytes",
        "memory_growth_bytes",
    }
    figures.add("flops_per_second")
    rate = {"flops_per_second"}
    for found in ("engines", "ratios"):
        assert result[found].pop("matrix").keys() == rate
    check_result(result, ["bare", "transformers"], figures)
    assert 0 <= result["checks"]["max_loss_difference"] < 1e-4
    assert result["work"]["tokens_per_step"] == 64
    assert result["work"]["estimated_memory_bytes"] > 10**8


def test_save_measures_the_stall_of_a_save() -> None:
    sizes = ("hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2")
    settings = [f"model.{size}" for size in sizes] + ["data.max_seq_length=16"]
    steps = ("--steps", "2", "--warmup-steps", "2", "--save-steps", "2")
    result = run_benchmark("train.save", *steps, *settings, "training.batch_size_per_device=1")
    for engine in (OURS, "never"):
        found = result["engines"][engine]
        assert found.keys() == {"step_seconds", "mean_step_seconds", "stall_steps"}
        assert found["step_seconds"]["median"] > 0
    stalls = result["engines"][OURS]["stall_steps"]["rounds"]
    assert result["checks"]["max_stall_steps"] == pytest.approx(max(stalls), rel=1e-4)


def test_sample_writes_the_tokens_of_transformers() -> None:
    options = ("--prompt-tokens", "4", "--new-tokens", "12", "--batch-sizes", "1", "3")
    kinds = ("--threads", "1", "--unequal", "--dtypes", "int8")
    result = run_benchmark("sample", *SMALL_MODEL, *options, *kinds)
    assert result["checks"]["tokens_equal"]
    kinds = ("first_text", "tokens")
    figures = {f"{kind}_per_second_at_batch_{size}" for kind in kinds for size in (1, 3)}
    read = {"gigabytes_read_per_second"}
    assert result["engines"].pop("read").keys() == result["ratios"].pop("read").keys() == read
    for name in ("llama_cpp", "llama_cpp_q8_0"):  # It writes one text at a time.
        found = result["engines"].pop(name)
        assert found is None or found.keys() == {key for key in figures | read if key[-1] != "3"}
        assert (found is None) == (result["left_out"].pop(name, None) is not None)
    check_result(result, ["velocity_int8", "transformers", "transformers_static"], figures | read)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The options that name a checkpoint which `trained` made, and its set."""
    folder = tmp_path_factory.mktemp("trained")
    write_jsonl(folder / "a.jsonl", [*make_texts(1500)])
    (folder / "code").mkdir()
    (folder / "code/one.py").write_text("print('one')\n")
    command = [sys.executable, "-m", "benchmarks.trained", "--input", str(folder / "a.jsonl")]
    command += ["--code", str(folder / "code"), "--out", str(folder / "model")]
    command += ["--vocab-size", "400", "--steps", "2"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert process.returncode == 0, process.stderr
    assert "'one'" in (folder / "model/code.jsonl").read_text()
    return ("--ckpt", f"{folder / 'model/checkpoints'}", "--shards", f"{folder / 'model/shards'}")


def test_quality_tells_what_each_dtype_costs(trained: tuple[str, ...]) -> None:
    sizes = ("--windows", "3", "--window-tokens", "32", "--prompt-tokens", "8", "--new-tokens", "4")
    command = [sys.executable, "-m", "benchmarks.quality", *trained, *sizes, "--texts", "2"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    rows = {row["weights"]: row for row in result["table"]}
    forms = {"bf16", "fp16", "int8", "int8 export", "gguf q8_0", "gguf q5_0", "gguf q4_0"}
    assert rows.keys() | result["left_out"].keys() == forms
    fp32 = result["work"]["fp32_bytes"]
    assert fp32 == 4 * result["work"]["num_parameters"]
    assert rows["bf16"]["bytes"] < 0.51 * fp32
    assert rows["int8"]["bytes"] < 0.27 * fp32
    for row in rows.values():
        assert row["kl"]["mean"] > 0 or row["weights"] == "fp16"
        assert row["loss_change"]["standard_error"] < row["loss"]["standard_error"]
        assert 0 <= row["mean_equal_tokens"] <= row["mean_text_tokens"] == 4
    assert rows["fp16"]["kl"]["mean"] < rows["bf16"]["kl"]["mean"] < rows["int8"]["kl"]["mean"]


def test_lookup_writes_the_same_tokens_in_fewer_steps(trained: tuple[str, ...]) -> None:
    sizes = ("--prompt-tokens", "40", "--quoted-tokens", "8", "--new-tokens", "24")
    result = run_benchmark("sample.lookup", *trained, *SMALL_MODEL, *sizes, "--texts", "1")
    assert result["checks"]["tokens_equal"]
    steps = {}
    for model in ("written", "dictated"):
        found = result[model]["engines"]
        assert found[OURS].keys() == found["without_lookup"].keys()
        for kind in ("code", "quotes", "prose"):
            assert found["without_lookup"][f"{kind}_tokens_per_step"]["median"] == 1
            steps[model, kind] = found[OURS][f"{kind}_tokens_per_step"]["median"]
    # A quote without a fault is guessed whole: five tokens, and one that is chosen.
    assert steps["dictated", "quotes"] > 4
    assert min(steps.values()) >= 1


def test_serve_answers_many_clients() -> None:
    options = ("--clients", "3", "--seconds", "1", "--prompt-tokens", "4", "--new-tokens", "4")
    result = run_benchmark("sample.serve", *SMALL_MODEL, *options)
    figures = {"tokens_per_second", "texts_per_second", "first_token_seconds", "peak_memory_bytes"}
    check_result(result, ["one_client"], figures)
    assert result["checks"].keys() == {"max_memory_growth_share"}


def test_engines_take_turns_and_ratios_are_taken_within_a_round() -> None:
    turns: list[str] = []

    def start(name: str, rates: Sequence[float]) -> Engine:
        waiting = iter(rates)

        def measure() -> Measured:
            turns.append(name)
            return Measured({"rate": next(waiting)}, name)

        return Engine(name, (), lambda: measure)

    missing = Engine("other", ("no-such-package",), lambda: pytest.fail("must not start"))
    engines = [start(OURS, [1, 2, 30, 4]), start("peer", [1, 1, 10, 1]), missing]
    options = make_parser("").parse_args([])
    rounds: list[dict[str, Any]] = []
    results = take_turns(engines, options, lambda outputs: rounds.append(dict(outputs)))
    assert turns == [OURS, "peer"] * 4
    assert rounds == [{OURS: OURS, "peer": "peer"}] * 4
    assert results.reasons == {"other": "not installed: no-such-package"}
    summary = summarize(results)
    assert summary["engines"][OURS]["rate"] == {"median": 4, "rounds": [2, 30, 4]}
    assert summary["ratios"]["peer"]["rate"] == {"median": 3, "rounds": [2, 3, 4]}
    assert summary["engines"]["other"] is None
    assert summary["left_out"] == results.reasons


@pytest.mark.parametrize("number", ["0", "2", "-1", "x"])
def test_the_number_of_rounds_is_odd(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser("").parse_args(["--rounds", number])
    assert "expected an odd number" in capsys.readouterr().err


def test_other_tokens_are_an_error() -> None:
    ours = np.array([1, 2, 3], np.uint16)
    compare_tokens({OURS: ours, "peer": ours.copy()})
    with pytest.raises(ValueError, match=r"peer made 3 tokens, velocity 3, .* from token 1 on"):
        compare_tokens({OURS: ours, "peer": np.array([1, 9, 3], np.uint16)})
    with pytest.raises(ValueError, match=r"peer made 2 tokens, velocity 3, .* from token 2 on"):
        compare_tokens({OURS: ours, "peer": ours[:2]})


def test_other_losses_are_an_error() -> None:
    assert compare_losses([2.0, 1.0], [2.0, 1.0005], "fp32") == pytest.approx(5e-4)
    for wrong in (1.01, float("nan")):
        with pytest.raises(ValueError, match=r"step 2: Trainer's loss is .*, ours 1.0"):
            compare_losses([2.0, wrong], [2.0, 1.0], "fp32")


def test_longer_finds_the_loss_at_each_position() -> None:
    model = make_model().eval()
    windows = torch.arange(40 * 65).view(40, 65) * 7 % 300  # More than are computed at a time.
    with torch.no_grad():
        found = find_losses(model, windows)
        mean = model(windows[:, :-1], windows[:, 1:])
        (logits,) = model(windows[35:36, :21])[:, -1]
    assert found.shape == (40, 64)
    assert float(found.mean()) == pytest.approx(float(mean), rel=1e-4)
    expected = -float(logits.log_softmax(0)[windows[35, 21]])
    assert float(found[35, 20]) == pytest.approx(expected, rel=1e-4)
