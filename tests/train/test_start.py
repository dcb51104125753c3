"""How a run starts: its words, what it says it is and needs, and what it refuses."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from shards.disk.memory import find_memory
from shards.mixture.entries import Entry
from shards.mixture.sets import MixedOrder, open_sets
from tests.commands import velocity
from tests.runs import make_config, run_small
from train.config import Config, DistributedConfig
from train.ranks.distributed import Rank, choose_device
from train.settings import load_config
from train.start import choose, machine, report
from train.start.arguments import parse_arguments
from train.start.fit import find_least
from train.start.memory import estimate_memory

ROOT = Path(__file__).parents[2]
GIGABYTE = 10**9
CPU = Rank(0, 1, 0, torch.device("cpu"))


def write_files(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def lines_of(text: str) -> dict[str, str]:
    """The report's lines by their labels."""
    return dict(
        line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[a-z]+ {2,}\S", line)
    )


@pytest.mark.parametrize(
    "words",
    [
        ["training.x=1", "--config", "tiny", "data.y=2"],
        ["--config=tiny", "training.x=1", "data.y=2"],
        ["training.x=1", "data.y=2", "--debug", "--config", "tiny"],
    ],
)
def test_options_and_settings_come_in_any_order(words: list[str]) -> None:
    parsed = parse_arguments(words)
    assert (parsed.config, parsed.overrides) == ("tiny", ["training.x=1", "data.y=2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--confg", "tiny"], "--confg: no such option; did you mean --config?"),
        (["--training.x=a b"], "--training.x=a b: settings have no dashes: 'training.x=a b'"),
        (["a.b=1", "--data.shards", "x"], "settings have no dashes: data.shards=VALUE"),
        (["-q"], "-q: no such option"),
        (["--config"], "argument --config: expected one argument"),
    ],
)
def test_a_misspelt_option_gets_a_hint(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="-m train --help lists the options") as caught:
        parse_arguments(words)
    assert message in str(caught.value)


def test_velocity_train_says_how_training_is_started() -> None:
    code, _, errors = velocity("train", "--config", "tiny", "data.shards=a b")
    assert code == 1
    command = "torchrun --nproc_per_node 1 -m train --config tiny 'data.shards=a b'"
    assert errors == f"velocity: training is started by torchrun: {command}\n"


def test_a_run_says_what_it_is_and_needs(
    small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_small(small_shards, tmp_path, training__num_training_steps=2)
    told = lines_of(capsys.readouterr().err)
    num_parameters = make_config(small_shards, tmp_path).model.num_parameters()
    assert re.fullmatch(r"CPU, (1 thread|\d+ threads), fp32", told["device"])
    assert told["model"] == f"{num_parameters:,} parameters"
    assert told["step"] == "64 tokens (2 samples of 16 x 2 micro-steps)"
    assert told["run"].startswith("2 steps; 128 tokens, 0.00")
    assert told["validation"] == "every 100 steps, 8 windows of 16"
    assert re.fullmatch(r"about \d+ MB a rank, .*B free.*", told["memory"])
    assert told["checkpoints"].startswith(f"{tmp_path}/checkpoints: 9.71 MB each, 5 kept, ")
    assert told["logs"] == str(tmp_path / "logs")
    run_small(small_shards, tmp_path, training__num_training_steps=4, training__warmup_steps=1)
    again = capsys.readouterr().err
    assert lines_of(again)["run"].startswith("4 steps, 2 of them done; 256 tokens, ")
    assert "the learning rate follows the new schedule: step 3 has " in again


def open_order(shards: Path, config: Config) -> MixedOrder:
    """The order of a new run on a set."""
    data, seed = config.data, config.infrastructure.seed
    return MixedOrder.begin(open_sets([Entry(str(shards), 1)], data.max_seq_length, seed))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"training__eval_windows": 0}, "none: training.eval_windows is 0"),
        (
            {"data__max_seq_length": 8192, "model__max_position_embeddings": 8192},
            "none: a window has 8,193 tokens (data.max_seq_length plus one), and the validation ",
        ),
    ],
)
def test_a_run_without_a_validation_loss_says_why(
    small_shards: Path, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    told: list[str] = []
    config = make_config(small_shards, tmp_path, **changes)
    report.check_start(config, CPU, open_order(small_shards, config), 0, told.append)
    assert lines_of("\n".join(told))["validation"].startswith(reason)


def test_a_model_that_cannot_fit_is_refused_with_one_that_does(
    small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "find_memory", lambda: (16 * GIGABYTE, 12 * GIGABYTE))
    config = load_config(None, [f"infrastructure.output_dir={tmp_path}"])
    told: list[str] = []
    with pytest.raises(ValueError, match="too large for this machine") as caught:
        report.check_start(config, CPU, open_order(small_shards, config), 0, told.append)
    assert "1,713,639,424 parameters take 27.4 GB on each rank" in str(caught.value)
    assert "a rank has 16 GB; --config 350m fits (--config list shows all)" in str(caught.value)
    assert told == []
    # What only may fail is told: the state of 5.7 GB fits into 6 GB.
    monkeypatch.setattr(report, "find_memory", lambda: (6 * GIGABYTE, 5 * GIGABYTE))
    config = find_least(load_config("350m", [f"infrastructure.output_dir={tmp_path}"]), 1)
    report.check_start(config, CPU, open_order(small_shards, config), 0, told.append)
    assert (
        "it may not fit; if it does not, set a smaller training.batch_size_per_device"
        in (lines_of("\n".join(told))["memory"])
    )


def test_ranks_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_memory", lambda: (16 * GIGABYTE, 12 * GIGABYTE))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert report.find_available(CPU) == (4 * GIGABYTE, 3 * GIGABYTE)


def test_a_disk_without_room_for_a_checkpoint_is_told_before_the_first_step(
    small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"about 9\.71 MB of disk is needed in .* \(for a check"):
        run_small(small_shards, tmp_path)
    usage = usage._replace(free=20_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    told = report.describe_checkpoints(make_config(small_shards, tmp_path), CPU, first_step=0)
    assert told.endswith("20 MB of disk free: too little for all of them")


def test_the_estimate_is_near_what_was_measured() -> None:
    """Peak resident sizes of runs on a CPU, in megabytes, and the state's exact size."""
    small = ["training.batch_size_per_device=64"]
    wide = [
        *("model.hidden_size=384", "model.num_attention_heads=6", "model.num_hidden_layers=6"),
        *("model.intermediate_size=1024", "data.max_seq_length=256"),
        *("model.max_position_embeddings=256", "training.batch_size_per_device=16"),
    ]
    for overrides, measured in (
        ([], 750),
        (small, 1054),
        (wide, 2313),
        ([*wide, "training.activation_checkpointing=full"], 1740),
    ):
        # They were measured with AdamW.
        config = load_config("tiny", ["training.optimizer=adamw", *overrides])
        peak = estimate_memory(config, "cpu").peak / 10**6
        assert 0.72 * measured < peak < 1.25 * measured
    need = estimate_memory(Config(), "cuda")
    assert need.state == 16 * Config().model.num_parameters()
    # DDP's buckets.
    assert estimate_memory(Config(), "cuda", 4).peak - need.peak == need.state // 4


def test_more_of_anything_needs_more() -> None:
    settings = ["training.batch_size_per_device=8", "training.activation_checkpointing=none"]
    base = estimate_memory(load_config("125m", settings), "cuda").peak
    for more in (
        "training.batch_size_per_device=16",
        "training.precision=fp32",
        "training.compile=false",
        "model.num_hidden_layers=13",
    ):
        assert estimate_memory(load_config("125m", [*settings, more]), "cuda").peak > base
    less = load_config("125m", [*settings, "training.activation_checkpointing=full"])
    assert estimate_memory(less, "cuda").peak < base


MEMINFO = "MemTotal: 16000 kB\nMemFree: 1 kB\nMemAvailable: 8000 kB\nSwapTotal: 0 kB\n"


@pytest.mark.parametrize(
    ("files", "total", "free"),
    [
        ({}, 16000, 8000),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": f"{4000 * 1024}\n",
                "sys/fs/cgroup/a/memory.current": f"{3000 * 1024}\n",
                "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {500 * 1024}\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
            },
            4000,
            1500,
        ),
        # In a container the host's path is not there.
        (
            {"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/memory.max": f"{5000 * 1024}\n"},
            5000,
            5000,
        ),
        (
            {
                "proc/self/cgroup": "9:cpu:/\n4:memory:/docker/1\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3000 * 1024}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{1000 * 1024}\n",
            },
            3000,
            2000,
        ),
        ({"proc/self/cgroup": "4:memory:/\n0::/\n"}, 16000, 8000),
    ],
)
def test_a_containers_limit_counts_where_it_is_lower(
    tmp_path: Path, files: dict[str, str], total: int, free: int
) -> None:
    root = write_files(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert find_memory(root) == (total * 1024, free * 1024)


@pytest.mark.parametrize(
    ("files", "swap"),
    [
        ({"a/memory.max": 4000}, 2000),
        ({"a/memory.max": 4000, "a/memory.swap.max": 500}, 500),
        ({"a/memory.max": 4000, "a/memory.swap.max": 0}, 0),
        ({"a/b/memory.max": 4000, "a/b/memory.swap.max": 9000}, 2000),
        (
            {
                "memory/a/b/memory.limit_in_bytes": 4000,
                "memory/a/b/memory.memsw.limit_in_bytes": 4500,
            },
            500,
        ),
    ],
)
def test_a_containers_limit_of_swap_counts_too(
    tmp_path: Path, files: dict[str, int], swap: int
) -> None:
    meminfo = MEMINFO.replace("SwapTotal: 0", "SwapTotal: 2000")
    groups = {f"sys/fs/cgroup/{name}": f"{size * 1024}\n" for name, size in files.items()}
    kind = "4:memory:" if any(name.startswith("memory/") for name in files) else "0::"
    write_files(tmp_path, {"proc/meminfo": meminfo, "proc/self/cgroup": f"{kind}/a/b\n", **groups})
    found = find_memory(tmp_path)
    assert found is not None
    assert found[0] == (4000 + swap) * 1024


def test_gpus_are_counted_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.find_gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 24000\necho 80000\n")
    program.chmod(0o755)
    small, large = 24000 * 2**20, 80000 * 2**20
    assert machine.find_gpus() == [small, large]
    for visible, found in (
        *(("1", [large]), ("1, 0", [large, small]), ("7", []), ("", []), ("-1", [])),
        # Which GPU has the name is not asked.
        ("GPU-8f2c,GPU-11aa", [small, small]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.find_gpus() == found
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for broken in ("echo 'No devices were found'; exit 6", "echo 24000; exit 9"):
        program.write_text(f"#!/bin/sh\n{broken}\n")
        assert machine.find_gpus() == []


@pytest.mark.parametrize(
    ("gpus", "num_tokens", "name"),
    [
        ([], 10**12, "tiny"),
        ([2 * GIGABYTE], None, "tiny"),
        ([3 * GIGABYTE], None, "30m"),
        ([4 * GIGABYTE], None, "125m"),
        ([8 * GIGABYTE], None, "350m"),
        # 64 samples a step are too few for 65 ranks; so `tiny`, which has no such number.
        ([4 * GIGABYTE] * 65, None, "tiny"),
        ([80 * GIGABYTE], None, "1.7b"),
        ([80 * GIGABYTE], 10**6, "tiny"),
        ([80 * GIGABYTE], 200 * 10**6, "30m"),
        ([80 * GIGABYTE], 10**9, "125m"),
        ([80 * GIGABYTE, 24 * GIGABYTE], 10**12, "350m"),
    ],
)
def test_the_next_command_names_what_fits_machine_and_data(
    gpus: list[int], num_tokens: int | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "find_gpus", lambda: gpus)
    command = choose.suggest_command(Path("my shards"), num_tokens)
    ranks = 1 if name == "tiny" else len(gpus)
    assert command == (
        f"torchrun --nproc_per_node {ranks} -m train --config {name} 'data.shards=my shards'"
    )


def test_a_set_with_more_ids_needs_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "find_gpus", lambda: [8 * GIGABYTE])
    for num_ids, name in ((50_257, "350m"), (130_256, "125m")):
        command = choose.suggest_command(Path("shards"), 10**12, num_ids)
        assert command == f"torchrun --nproc_per_node 1 -m train --config {name}"
        found = choose.largest_config("cuda", 8 * GIGABYTE, 1, num_ids)
        assert found is not None
        assert found.name == name


def test_docs_and_files_say_what_the_estimate_says() -> None:
    page = (ROOT / "docs" / "runs.md").read_text("utf-8")
    header, *rows = choose.tabulate_configs()
    assert f"| {' | '.join(header).replace('--config', '`--config`')} |" in page
    for name, *cells in rows:
        assert f"| `{name}` | {' | '.join(cells)} |" in page
        head = (ROOT / "train" / "configs" / f"{name}.yaml").read_text("utf-8").split("\nmodel:")[0]
        parameters, on_gpu, _, _, tokens = cells
        assert f"{parameters} parameters; needs " in head
        assert f"{on_gpu} on a GPU" in head
        assert f"{tokens} tokens" in head
    sizes = [named.config.model for named in choose.named_configs()[1:]]
    assert {size.head_size for size in sizes} == {64}


@pytest.mark.parametrize(
    ("config", "world_size", "expected"),
    [
        (DistributedConfig(), 1, "mps"),
        (DistributedConfig(device="mps"), 1, "mps"),
        (DistributedConfig(device="cpu"), 1, "cpu"),
        (DistributedConfig(), 2, "cpu"),
        (DistributedConfig(device="mps"), 2, "torch finds no Apple GPU (MPS) for a run of one"),
        (DistributedConfig(device="cuda"), 1, "distributed.device is cuda, but torch finds no GPU"),
        (DistributedConfig(backend="nccl"), 1, "distributed.backend is nccl, but torch finds no"),
    ],
)
def test_a_machine_of_apples_trains_on_its_gpu_unless_told_otherwise(
    config: DistributedConfig, world_size: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        found = choose_device(config, 0, world_size).type
    except ValueError as error:
        found = str(error)
    assert found.startswith(expected) or expected in found
