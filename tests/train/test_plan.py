"""`velocity plan`, and what a run with auto in its settings chooses."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.transformer import Transformer
from tests.commands import velocity
from tests.runs import make_config, read_metrics, run_small
from train.checkpoints.position import read_run_config
from train.gpus import GIGABYTE, GPUS
from train.ranks.distributed import Rank
from train.settings import load_config
from train.start import settle, trial
from train.start.choose import list_configs
from train.start.fit import find_fitting, find_least
from train.start.memory import estimate_memory
from train.start.settle import settle_config
from train.step.precision import make_autocast

CPU = Rank(0, 1, 0, torch.device("cpu"))
AUTO: dict[str, object] = {
    "training__global_batch_tokens": 8 * 16,
    "training__batch_size_per_device": "auto",
    "training__gradient_accumulation_steps": "auto",
    "training__activation_checkpointing": "auto",
}


def plan(*words: str) -> dict[str, Any]:
    code, output, errors = velocity("plan", "--json", *words)
    assert code == 0, errors
    [line] = output.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


# What the model and state of the original VelocityLM take.
ADAMW = "training.optimizer=adamw"


def test_the_plan_of_the_default_model() -> None:
    """Its FLOPs, state and checkpoints are known from elsewhere."""
    words = ["--gpu", "H200", "--gpus", "8", "--price", "2.5", ADAMW]
    made = plan("--config", "1.7b", *words)
    assert made["parameters"] == 1_713_639_424
    memory = made["memory"]
    assert memory["weights"] + memory["gradients"] + memory["optimizer"] == 27_418_230_784
    assert memory["exchange"] == memory["gradients"]
    parts = sum(size for name, size in memory.items() if name != "peak")
    assert memory["peak"] == parts <= made["gpu_bytes"] == 141 * GIGABYTE
    assert made["activation_checkpointing"] == "none"
    assert made["micro_batch"] * made["micro_steps"] * 8 * 2048 == made["step_tokens"] == 524_288
    assert made["checkpoint_bytes"] == 12 * made["parameters"]
    assert made["disk_bytes"] == 6 * made["checkpoint_bytes"]
    cost = made["cost"]
    # 989.4 TFLOP/s at 40 %, and 11.489 GFLOP a token.
    assert cost["tokens_per_second"] == pytest.approx(8 * 0.4 * 989.4e12 / 11_489_193_984)
    seconds = made["tokens"] / cost["tokens_per_second"]
    assert cost["days"] * 86_400 == pytest.approx(seconds)
    assert cost["gpu_hours"] * 3600 == pytest.approx(8 * seconds)
    assert cost["money"] == pytest.approx(2.5 * cost["gpu_hours"])


def test_a_model_of_27_gigabytes_of_state_needs_sharding_on_24() -> None:
    words = ["--config", "1.7b", ADAMW, "--gpu", "L4", "--gpus"]
    for num_gpus in ("1", "8", "64"):
        alone = plan(*words, num_gpus)
        assert not alone["fits"]
        assert set(alone["largest_micro_batch"].values()) == {0}
        assert alone["fewest_gpus_with_fsdp"] == 2
    sharded = plan(*words, "2", "distributed.strategy=fsdp")
    assert sharded["fits"]
    assert sharded["memory"]["weights"] == 2 * 1_713_639_424
    assert sharded["memory"]["peak"] < 24 * GIGABYTE
    assert not plan(*words, "1", "distributed.strategy=fsdp")["fits"]
    # More ranks leave more room.
    more = plan(*words, "8", "distributed.strategy=fsdp")["largest_micro_batch"]
    assert more["full"] > sharded["largest_micro_batch"]["full"]
    _, output, _ = velocity("plan", *words, "4")
    assert (
        "does not fit 24 GB: with distributed.strategy=ddp never, as weights, gradients" in output
    )
    assert (
        "take 27.4 GB on every GPU; distributed.strategy=fsdp on 2 GPUs or more does, with "
        "activation_checkpointing=full and a micro-batch of 1\n"
    ) in output


@pytest.mark.parametrize("words", [[], ["--gpus", "8", "distributed.strategy=fsdp"]])
def test_a_micro_batch_that_does_not_fit_gets_one_that_does(words: list[str]) -> None:
    kind = "training.activation_checkpointing=none"
    words = ["--config", "350m", "--gpu", "RTX 4090", kind, *words]
    _, output, _ = velocity("plan", *words, "training.batch_size_per_device=64")
    found = re.search(
        rf"does not fit 24 GB; with {kind} a (\S+) of up to (\d+) does$", output, re.M
    )
    assert found
    for size, fits in ((int(found[2]), True), (int(found[2]) + 1, False)):
        # Of as many tokens a step as it takes for all micro-batches to be of that size.
        step = f"training.global_batch_tokens={8 * size * 2048}"
        assert plan(*words, step, f"{found[1]}={size}")["fits"] == fits


def test_a_plan_says_that_mfu_counts_whole_windows() -> None:
    """Of documents too, whose lengths it does not know; so it is the `mfu` of a run."""
    words = ["--config", "350m", "--gpu", "H200"]
    _, windows, _ = velocity("plan", *words)
    _, documents, _ = velocity("plan", *words, "data.attention=document")
    words = "% MFU by whole windows, not documents: "
    assert words in documents
    assert documents.replace(words, "% MFU: ") == windows


def test_numbers_are_shown_as_people_read_them() -> None:
    """Without e-notation; what was looked for, and no further, is not what fits."""
    words = ["--config", "tiny", "--gpu", "H200", "--price", "2"]
    words.append("training.num_training_steps=500")
    _, small, _ = velocity("plan", *words, "--mfu", "0.004")
    assert re.search(
        r"tokens/s at 0\.4% MFU: 42\.19 seconds, 0\.01172 GPU-hours; costs 0\.02344", small
    )
    assert "fits up to   4,096 or more  4,096 or more  4,096 or more\n" in small
    long = ["data.max_seq_length=1048576", "model.max_position_embeddings=1048576"]
    long += ["training.batch_size_per_device=1", "training.gradient_accumulation_steps=1"]
    _, large, _ = velocity("plan", "--gpu", "H200", *long)
    assert "1,928 days, 46,275 GPU-hours" in large
    assert "1,048,576 tokens (1 sample of 1,048,576)" in large
    assert "does not fit 141 GB; nor, with distributed.strategy=fsdp, any number of such" in large
    _, other, _ = velocity("plan", "--config", "1.7b", "--gpu-memory", "48")
    assert "GPUs         1 GPU of 48 GB, fp16\n" in other
    kept = ["training.keep_every_steps=100", "training.keep_best=true", ADAMW]
    assert (
        plan("--gpu-memory", "90", "--config", "1.7b", *kept)["disk_bytes"] == 657 * 12 * 1713639424
    )


def test_the_table_says_what_each_choice_needs() -> None:
    made = plan("--config", "1.7b", "--gpu", "A100 80GB")
    config = load_config("1.7b")
    for size, needs in made["memory_table"].items():
        for kind, need in needs.items():
            changes: Any = {"batch_size_per_device": int(size), "activation_checkpointing": kind}
            changed = replace(config, training=replace(config.training, **changes))
            assert need == estimate_memory(changed, "cuda").peak
    for kind, largest in made["largest_micro_batch"].items():
        for size, fits in ((largest, True), (largest + 1, False)):
            changes = {"batch_size_per_device": size, "activation_checkpointing": kind}
            changed = replace(config, training=replace(config.training, **changes))
            assert (estimate_memory(changed, "cuda").peak <= 80 * GIGABYTE) == fits
    lines = velocity("plan", "--config", "1.7b", "--gpu", "A100 80GB")[1].splitlines()
    [header] = [line for line in lines if line.startswith("micro-batch ")]
    assert header.split() == ["micro-batch", "none", "selective", "full"]
    [last] = [line for line in lines if line.startswith("fits up to")]
    assert [int(word) for word in last.split()[3:]] == [*made["largest_micro_batch"].values()]


def test_a_set_gives_epochs_and_ids(small_shards: Path) -> None:
    tokens = json.loads((small_shards / "manifest.json").read_text())["totals"]["train"]["tokens"]
    made = plan("--config", "tiny", "--gpu", "T4", "--shards", str(small_shards))
    assert made["epochs"] == pytest.approx(made["tokens"] / tokens)
    words = ["--config", "tiny", "--gpu", "T4", "--shards", str(small_shards)]
    many = velocity("plan", *words, "training.num_training_steps=1000000")[1]
    times = f"{1_000_000 * 512 / tokens:,.0f}"
    assert f"70.27 a parameter; {times} epochs: each token of the set {times} times\n" in many
    # What the run would refuse.
    for setting, message in (
        (
            "model.vocab_size=300",
            "its tokenizer has 50257 ids, model.vocab_size is 300; set model.",
        ),
        ("data.max_seq_length=1048576", "the split has "),
    ):
        length = "model.max_position_embeddings=1048576"
        code, _, errors = velocity("plan", *words, setting, length)
        assert (code, message in errors) == (1, True), errors


def test_the_named_configs_are_listed_as_by_a_run() -> None:
    assert velocity("plan", "--config", "list")[:2] == (0, "\n".join([*list_configs(), ""]))


def test_without_a_gpu_the_common_sizes_are_shown() -> None:
    code, output, _ = velocity("plan", "--config", "1.7b")
    assert code == 0
    rows = dict(re.findall(r"^(\d+ GB) +(.*)$", output, re.MULTILINE))
    assert list(rows) == ["24 GB", "40 GB", "80 GB", "141 GB"]
    assert rows["24 GB"].split() == ["-", "-", "1", "1", "GPU"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "B17"], "no GPU is known as 'B17'; known are H200, H100, "),
        (["--gpu", "T4", "--gpus", "0"], "--gpus is 0; expected 1 to 100,000"),
        (["--gpu", "T4", "--mfu", "40"], "--mfu is 40; expected a share above 0, up to 1: 0.4"),
        (["--gpu", "T4", "--mfu", "nan"], "--mfu is nan; expected a share"),
        (["--gpu", "T4", "--price", "-1"], "--price is -1; expected what a GPU costs for an hour"),
        (["--gpu-memory", "0"], "--gpu-memory is 0; expected gigabytes: 80"),
        (
            ["data.max_seq_length=auto"],
            "data.max_seq_length is auto, which is the rows of a packed",
        ),
        (["--json"], "--json needs a kind of GPU, or its memory: --gpu H200"),
        (["--gpus", "8"], "--gpus needs a kind of GPU, or its memory: --gpu H200"),
        (["--mfu", "0.2"], "--mfu needs a kind of GPU: --gpu H200"),
        (["--gpu-memory", "48", "--price", "3"], "--price needs a kind of GPU: --gpu H200"),
        (["--config", "none"], "none: no such file; --config takes a path or one of tiny, "),
        (["--shards", "nowhere"], "nowhere"),
        (
            ["--gpu", "T4", "training.precision=bf16"],
            "the T4 does not compute in bf16; set training.precision to one of fp16, fp32",
        ),
        (
            ["--gpu", "T4", "--gpus", "100", "--config", "30m"],
            "training.global_batch_tokens=65,536 are 64 samples of data.max_seq_length=1,024, fewer"
            " than the 100 ranks; expected at least 102,400",
        ),
        (
            ["--gpu", "T4", "training.batch_size_per_device=auto"],
            "training.batch_size_per_device is auto, but training.global_batch_tokens is null; say "
            "how many tokens a step takes, for instance training.global_batch_tokens=524288",
        ),
    ],
)
def test_wrong_words_get_one_line(words: list[str], message: str) -> None:
    code, output, errors = velocity("plan", *words)
    assert (code, output) == (1, "")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_plan_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['velocity', 'plan', '--gpu', 'H100', '--json']\n"
        "import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'pyarrow'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_gpus_are_found_by_both_names() -> None:
    for gpu in GPUS:
        for name in (gpu.short, gpu.full, gpu.short.lower().replace(" ", "-")):
            assert plan("--gpu", name)["gpu"] == gpu.short


def choose(gigabytes: float, device_type: str = "cuda", num_ranks: int = 1, *words: str) -> Any:
    # With AdamW, whose state is what the sizes below were chosen for.
    config = load_config("1.7b", [ADAMW, *words])
    found = find_fitting(config, device_type, num_ranks, round(gigabytes * GIGABYTE))
    return found and (found.training.micro_batch, found.training.activation_checkpointing)


def test_auto_takes_what_fits() -> None:
    assert choose(141) == (16, "none")  # 24 fit, but 256 samples are dealt evenly by 16.
    assert choose(80) == (8, "none")
    assert choose(31)[1] == "full"
    assert choose(24) is None
    kinds = ["none", "selective", "full"]
    found = [choose(gigabytes) for gigabytes in range(31, 142)]
    # More memory never means more to compute again.
    order = [kinds.index(kind) for _, kind in found if _]
    assert order == sorted(order, reverse=True)
    # What is set is kept.
    assert choose(80, "cuda", 1, "training.activation_checkpointing=full") == (64, "full")
    assert choose(80, "cuda", 1, "training.batch_size_per_device=3")[0] == 3
    # 256 samples on 3 ranks: none deals them evenly.
    assert choose(80, "cuda", 3)[0] <= 10
    # A CPU is no faster with more.
    assert choose(1000, "cpu") == (4, "none")


def test_the_least_is_the_least() -> None:
    config = load_config("350m")
    least = estimate_memory(find_least(config, 1), "cuda").peak
    for gigabytes in (12, 24, 80):
        found = find_fitting(config, "cuda", 1, gigabytes * GIGABYTE)
        assert found is not None
        assert least <= estimate_memory(found, "cuda").peak <= gigabytes * GIGABYTE


def test_a_run_takes_what_fits_and_keeps_it(
    small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what; started again with other memory free it goes on as before."""
    told: list[str] = []
    free = [10 * GIGABYTE]
    monkeypatch.setattr(settle, "find_available", lambda rank: (free[0], free[0]))
    config = make_config(small_shards, tmp_path, **AUTO)
    chosen = settle_config(config, None, CPU, told.append)
    assert (chosen.training.micro_batch, chosen.training.micro_steps) == (8, 1)
    assert chosen.training.activation_checkpointing == "none"
    assert told == [
        "auto: micro-batches of 8, activation_checkpointing=none, for 8 GB of memory a rank"
    ]
    free[0] = 1000  # Too little for anything: then what takes the least.
    least = settle_config(config, None, CPU, told.append)
    assert (least.training.micro_batch, least.training.micro_steps) == (1, 8)
    assert least.training.activation_checkpointing == "full"
    assert settle_config(config, chosen, CPU, told.append) == chosen
    assert len(told) == 2
    # With other ranks, or another step, it chooses anew.
    two = replace(CPU, world_size=2)
    monkeypatch.setattr(Rank, "max", lambda self, value: value)
    assert settle_config(config, chosen, two, told.append).training.micro_batch == 1
    other = make_config(small_shards, tmp_path, **AUTO | {"training__global_batch_tokens": 64})
    assert settle_config(other, chosen, CPU, told.append).training.micro_batch == 1


def test_a_run_with_auto_goes_on_bit_for_bit(
    small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_small(small_shards, tmp_path / "whole", **AUTO)
    told = capsys.readouterr().err
    assert "auto: micro-batches of 8, activation_checkpointing=none, for " in told
    assert "all kept for the backward pass (activation_checkpointing: none)" in told
    run_small(small_shards, tmp_path / "parts", **AUTO, training__num_training_steps=4)
    run_small(small_shards, tmp_path / "parts", **AUTO)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
    kept = read_run_config(tmp_path / "parts/checkpoints/checkpoint-8").training
    assert (kept.batch_size_per_device, kept.gradient_accumulation_steps) == (8, 1)
    assert kept.activation_checkpointing == "none"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_takes_what_was_expected_and_is_tried() -> None:
    """The memory of two passes beside the estimate, and a micro-batch that cannot fit."""
    words = ["training.activation_checkpointing=none", "training.global_batch_tokens=1048576"]
    asked = load_config("125m", words)
    rank = Rank(0, 1, 0, torch.device("cuda", 0))
    total = torch.cuda.get_device_properties(0).total_memory
    with rank.device:
        model = Transformer(asked.model).train()
    model.compile_blocks()
    autocast = make_autocast(rank.device, "fp16")
    for size in (4, 16):
        config = replace(asked, training=replace(asked.training, batch_size_per_device=size))
        expected = estimate_memory(config, "cuda")
        took = trial.measure_passes(model, (size, 1024), autocast)
        assert took == pytest.approx(expected.peak - expected.optimizer - expected.base, rel=0.25)
    assert all(weight.grad is None for weight in model.parameters())
    too_large = find_fitting(asked, "cuda", 1, 4 * total)
    assert too_large is not None
    told: list[str] = []
    found = trial.try_on_gpu(asked, too_large, None, model, rank, autocast, told.append)
    assert found.training.micro_batch < too_large.training.micro_batch
    assert found.samples_per_step(1) == 1024
    assert "did not fit" in told[0]
