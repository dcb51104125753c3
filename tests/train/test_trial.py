"""What a run with auto in its settings does on a GPU that cannot take what was chosen."""

import re
from typing import Any

import pytest
import torch

from model.transformer import Transformer
from tests.tiny import make_model
from train.config import Config
from train.gpus import GIGABYTE
from train.ranks.distributed import Rank
from train.settings import load_config
from train.start import trial
from train.start.batch import set_training
from train.start.fit import find_fitting, list_candidates
from train.start.memory import estimate_memory
from train.step.precision import make_autocast

GPU = torch.device("cuda", 0)
ALONE = Rank(0, 1, 0, GPU)
# 256 samples of 2,048 tokens a step.
AUTO = [
    # Whose state is what the sizes of GPUs below were chosen for.
    "training.optimizer=adamw",
    "training.global_batch_tokens=524288",
    "training.batch_size_per_device=auto",
    "training.activation_checkpointing=auto",
]


class FakeGpu:
    """The functions of torch.cuda that are asked, for a GPU that other programs use `taken` of.

    Activations take `factor` times what is expected of them.
    """

    def __init__(self, patched: pytest.MonkeyPatch, num_bytes: int, factor: float) -> None:
        self.num_bytes = num_bytes
        self.factor = factor
        self.bound = num_bytes
        self.tried: list[tuple[int, str]] = []
        for name, fake in (
            ("mem_get_info", lambda device: (num_bytes, num_bytes)),
            ("memory_reserved", lambda device: 0),
            ("set_per_process_memory_fraction", self.set_fraction),
        ):
            patched.setattr(torch.cuda, name, fake)
        patched.setattr(trial, "measure_passes", self.measure)
        patched.setattr(trial, "set_up_blocks", self.set_up)

    def set_fraction(self, fraction: float, device: torch.device) -> None:
        assert 0 <= fraction <= 1
        self.bound = int(self.num_bytes * fraction)

    def set_up(self, model: Transformer, config: Config, rank: Rank) -> None:
        self.config = config

    def measure(self, model: Transformer, shape: tuple[int, int], autocast: Any) -> int:
        training = self.config.training
        assert shape == (training.micro_batch, self.config.data.max_seq_length)
        self.tried.append((training.micro_batch, training.activation_checkpointing))
        need = estimate_memory(self.config, "cuda")
        more = int((self.factor - 1) * need.activations)
        took = need.peak - need.optimizer + more
        if took > self.bound:
            raise torch.OutOfMemoryError
        return took


def try_on(
    patched: pytest.MonkeyPatch,
    gigabytes: float,
    factor: float,
    *words: str,
    before: Config | None = None,
    rank: Rank = ALONE,
) -> tuple[Config, FakeGpu, list[str]]:
    """What a run takes on a GPU of this size, and how, and what it says."""
    asked = load_config("1.7b", [*AUTO, *words])
    num_bytes = int(gigabytes * GIGABYTE)
    chosen = before or find_fitting(asked, "cuda", 1, int(0.95 * num_bytes))
    assert chosen is not None
    gpu, told = FakeGpu(patched, num_bytes, factor), list[str]()
    autocast = make_autocast(torch.device("cpu"), "fp32")
    found = trial.try_on_gpu(asked, chosen, before, make_model(), rank, autocast, told.append)
    assert gpu.bound == num_bytes  # It is as it was.
    assert gpu.tried[0] == (chosen.training.micro_batch, chosen.training.activation_checkpointing)
    assert gpu.config == found
    return found, gpu, told


def choice(config: Config) -> tuple[int, str]:
    return config.training.micro_batch, config.training.activation_checkpointing


def test_what_fits_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, gpu, told = try_on(monkeypatch, 80, 1.0)
    assert gpu.tried == [choice(found)] == [(8, "none")]
    [line] = told
    assert re.fullmatch(
        r"tried on the GPU: micro-batches of 8, activation_checkpointing=none, "
        r"[\d.]+ GB of 76 GB",
        line,
    )


def test_a_smaller_micro_batch_is_taken_where_the_passes_need_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the GPU is full: with what comes later it would take no more than 95 % of it."""
    found, gpu, told = try_on(monkeypatch, 80, 1.3)
    sizes = [size for size, _ in gpu.tried]
    assert sizes == sorted(sizes, reverse=True)
    assert {kind for _, kind in gpu.tried} == {"none"}
    assert len(sizes) > 1
    need = estimate_memory(found, "cuda")
    assert need.peak + 0.3 * need.activations <= 0.95 * 80 * GIGABYTE
    assert found.samples_per_step(1) == 256
    # What was said of a step holds no more.
    assert told[0].endswith(
        "; not micro-batches of 8, activation_checkpointing=none, which did not fit"
    )
    assert told[1].startswith("step         524,288 tokens (")
    assert len(told) == 2


def test_the_next_kind_of_checkpointing_is_tried_before_a_run_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, gpu, told = try_on(monkeypatch, 36, 4)
    assert gpu.tried[0][1] == "selective"
    assert gpu.tried[-1] == choice(found)
    assert found.training.activation_checkpointing == "full"
    assert told[-1].startswith("activations  all computed again, block by block")
    # Nothing was tried twice, and no kind again once the next one was.
    assert len(set(gpu.tried)) == len(gpu.tried)
    kinds = [kind for _, kind in gpu.tried]
    assert kinds == sorted(kinds, reverse=True)  # "selective" comes before "full".


def test_with_few_tokens_the_next_kind_comes_before_smaller_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in what is chosen: a GPU with less than 2,048 tokens at a time has too little to do."""
    words = ("data.max_seq_length=512", "training.global_batch_tokens=65536")
    asked = load_config("1.7b", [*AUTO, *words])
    chosen = find_fitting(asked, "cuda", 1, 80 * GIGABYTE)
    assert chosen is not None
    candidates = [choice(c) for c in list_candidates(asked, chosen, 1, 40 * GIGABYTE)]
    busy = [size * 512 >= 2048 for size, _ in candidates]
    assert busy == sorted(busy, reverse=True)
    rest = candidates[busy.index(False) :]
    assert rest == [
        (3, "none"),
        (3, "selective"),
        (3, "full"),
        (2, "none"),
        (2, "selective"),
        (2, "full"),
        (1, "none"),
        (1, "selective"),
        (1, "full"),
    ]


def test_checkpointing_is_tried_where_the_micro_batch_is_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, gpu, _ = try_on(monkeypatch, 80, 1.3, "training.batch_size_per_device=8")
    assert gpu.tried == [(8, "none"), (8, "selective")]
    assert choice(found) == (8, "selective")
    with pytest.raises(
        ValueError, match="even with micro-batches of 64, activation_checkpointing=full; set"
    ):
        try_on(monkeypatch, 80, 9, "training.batch_size_per_device=64")


def test_a_run_that_goes_on_keeps_what_it_had_if_it_fits_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few megabytes less than on its first start would give sums in another order."""
    before, _, _ = try_on(monkeypatch, 80, 1.0)
    need = estimate_memory(before, "cuda").peak
    short = 1.02 * need / GIGABYTE  # More than 95 %.
    found, gpu, _ = try_on(monkeypatch, short, 1.0, before=before)
    assert found == before
    assert gpu.tried == [(8, "none")]
    # On a GPU that cannot hold it, there is no choice.
    smaller, gpu, told = try_on(monkeypatch, 0.9 * need / GIGABYTE, 1.0, before=before)
    assert gpu.tried[:2] == [(8, "none"), (7, "none")]
    assert choice(smaller) != (8, "none")
    assert "which did not fit" in told[0]


def test_nothing_is_tried_where_nothing_is_open_or_the_model_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "measure_passes", None)
    model, autocast = make_model(), make_autocast(torch.device("cpu"), "fp32")
    asked = load_config("1.7b", AUTO)
    chosen = find_fitting(asked, "cuda", 1, 80 * GIGABYTE)
    assert chosen is not None
    for wish, rank in (
        (chosen, ALONE),
        (asked, Rank(0, 1, 0, torch.device("cpu"))),
    ):
        assert trial.try_on_gpu(wish, chosen, None, model, rank, autocast, print) == chosen
    words = [*AUTO, "distributed.strategy=fsdp"]
    asked = load_config("1.7b", words)
    sharded = find_fitting(asked, "cuda", 2, 80 * GIGABYTE)
    assert sharded is not None
    two = Rank(0, 2, 0, GPU)
    assert trial.try_on_gpu(asked, sharded, None, model, two, autocast, print) == sharded


def test_ranks_agree_on_what_every_one_can_take() -> None:
    tried: list[int] = []
    first = load_config("125m", ["training.activation_checkpointing=none"])
    sizes = [set_training(first, batch_size_per_device=size) for size in (16, 8, 4, 2)]

    def attempt(config: Config) -> int:
        tried.append(config.training.micro_batch)
        if tried[-1] > 4:
            raise torch.OutOfMemoryError
        return tried[-1]

    assert trial.find_first(sizes, attempt, ALONE) == (sizes[2], 4)
    assert tried == [16, 8, 4]

    class Other(Rank):
        """Beside a rank that has no room for more than 2."""

        def max(self, value: int) -> int:
            return max(value, tried[-1] > 2)

    assert trial.find_first(sizes, attempt, Other(0, 2, 0, GPU)) == (sizes[3], 2)


@pytest.mark.filterwarnings("ignore")  # The compiler has its own.
def test_blocks_are_not_compiled_for_any_shape_because_another_did_not_fit() -> None:
    graphs: list[list[object]] = []
    model = make_model()
    first = load_config("125m", ["training.activation_checkpointing=none"])
    sizes = [set_training(first, batch_size_per_device=size) for size in (4, 3, 2)]

    def keep(graph: torch.fx.GraphModule, inputs: list[object]) -> torch.fx.GraphModule:
        graphs.append(inputs)
        return graph

    def attempt(config: Config) -> int:
        model.compile_blocks(keep)  # type: ignore[arg-type]
        size = config.training.micro_batch
        model(torch.zeros((size, 8), dtype=torch.int64)).sum().backward()
        if size > 2:
            raise torch.OutOfMemoryError
        return size

    torch._dynamo.reset()
    assert trial.find_first(sizes, attempt, ALONE) == (sizes[2], 2)
    assert len(graphs) == 3  # Each has one for all blocks.
    assert not any(isinstance(given, torch.SymInt) for inputs in graphs for given in inputs)
