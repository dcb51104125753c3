"""Whether model/step.c is right and faster than torch on this CPU, timed when a model is loaded."""

import ctypes
import time
from collections.abc import Callable

import torch
from torch import Tensor

from model.cache import allocate_cache
from model.compiled import find_library, note_fault
from model.config import KEPT, ModelConfig
from model.narrow import round_weights
from model.rotation import make_rotation
from model.steps.choice import find_choice
from model.steps.cpu import Step
from model.transformer import Transformer

# How many tokens at a time are tried, most first; and on how much of a model.
TOKENS_TRIED = (16, 8, 4, 2, 1)
MAX_TIMED_BYTES = 2**27


def find_step(model: Transformer) -> Step | None:
    """What to take few tokens through a model with, timed here; None where torch is faster.

    What was found is kept: the same model is taken through the same way the next time. Also None
    where there is no compiler, where what it makes does not compute as torch does, and for a model
    that is not on a CPU, with norms in fp32.
    """
    norm, library = model.model.norm.weight, find_library()
    if library is None or norm.device.type != "cpu" or norm.dtype != torch.float32:
        return None
    if not is_right(library):
        return None
    step = Step(library, model, 0)
    step.is_spread = is_faster_spread(step, model)
    dtypes = [str(weight.dtype) for weight in (*model.parameters(), *model.buffers())]
    asked = repr((library._name, torch.__version__, torch.get_num_threads(), model.config, dtypes))
    step.max_tokens = find_choice(asked, (*TOKENS_TRIED, 0), lambda: find_most(step, model))
    return step if step.max_tokens else None


def is_faster_spread(step: Step, model: Transformer) -> bool:
    """Whether weights are read faster as long streams; timed at each load, as no number changes."""
    work, _ = make_work(step, model, 1)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for is_spread in (False, True) * 3:
        step.is_spread = is_spread
        seconds[is_spread].append(measure(work, 1))
    return min(seconds[True]) < min(seconds[False])


def find_most(step: Step, model: Transformer) -> int:
    """The most tokens at a time, of those tried, for which step.c is faster than torch, or 0."""
    for num_tokens in TOKENS_TRIED:
        ours, plain = time_both(step, model, num_tokens)
        if ours < plain:
            return num_tokens
    return 0


@torch.inference_mode()
def is_right(library: ctypes.CDLL) -> bool:
    """Whether step.c computes what torch does, on small models of odd sizes."""
    config = ModelConfig(
        vocab_size=37,
        hidden_size=42,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=10,
        intermediate_size=51,
        max_position_embeddings=99,
    )
    for kept in KEPT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Transformer(config).eval()
        round_weights(model, kept)
        step, expected = Step(library, model, 0), follow(model.predict, config)
        for step.is_spread in (False, True):
            difference = (follow(step.predict, config) - expected).abs().max() / expected.std()
            if not difference < 1e-3:
                note_fault(f"its logits differ by {difference:.3g} of their deviation ({kept})")
                return False
    return True


def follow(predict: Callable[..., Tensor], config: ModelConfig) -> Tensor:
    """The logits of three rows that are read together, then grow from different lengths."""
    tokens = torch.arange(3 * 80).view(3, 80) * 7 % 37
    cache = allocate_cache(config, 3, 96, torch.device("cpu"), torch.float32)
    found = [predict(tokens, cache)]
    cache.set_lengths([3, 70, 1])
    found += [predict(tokens[:, i : i + 1], cache) for i in range(3)]
    found.append(predict(tokens[:, :4], cache, torch.arange(12)))
    return torch.cat(found)


def time_both(step: Step, model: Transformer, num_tokens: int) -> tuple[float, float]:
    """Seconds for so many rows of a token each, by step.c and by torch; the shorter of two."""
    ours, plain = make_work(step, model, num_tokens)
    return measure(ours, 2), measure(plain, 2)


def make_work(
    step: Step, model: Transformer, num_tokens: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """What takes so many rows of a token each through a model, by step.c and by torch.

    Only through as many layers as hold MAX_TIMED_BYTES: others take as long.
    """
    config, blocks = model.config, model.model.layers
    size = sum(tensor.nbytes for tensor in (*blocks[0].parameters(), *blocks[0].buffers()))
    num_layers = min(len(blocks), max(1, MAX_TIMED_BYTES // size))
    cache = allocate_cache(config, num_tokens, 64, torch.device("cpu"), torch.float32)
    cache.set_lengths([63] * num_tokens)
    rotation = make_rotation(cache.begin(1), config)
    x, tokens = torch.ones(num_tokens, 1, config.hidden_size), torch.zeros(num_tokens, 1).long()
    nowhere, nothing = torch.empty(0).long(), torch.empty(0)

    def by_torch() -> None:
        y = x
        for number, block in enumerate(blocks[:num_layers]):
            y = block(y, rotation, cache.layer(number))

    def by_step() -> None:
        step.run(tokens, cache, nowhere, nothing, num_layers)

    return by_step, by_torch


@torch.inference_mode()
def measure(work: Callable[[], None], times: int) -> float:
    """Seconds that some work takes, the shortest of so many times."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
