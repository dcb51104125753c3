"""What was chosen tried on the GPU: two forward and backward passes, and the memory they took."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from model.transformer import Transformer
from shards.screen.lines import Say, format_bytes
from train.config import Config
from train.ranks.distributed import Rank
from train.ranks.strategy import is_sharding
from train.start.blocks import set_up_blocks
from train.start.fit import describe_choice, is_open, list_candidates
from train.start.memory import estimate_memory
from train.start.report import tell_change
from train.step.precision import Autocast

# Left free: memory in pieces too small for what comes, and what CUDA's libraries take themselves.
RESERVE = 0.05


def try_on_gpu(
    asked: Config,
    chosen: Config,
    before: Config | None,
    model: Transformer,
    rank: Rank,
    autocast: Autocast,
    say: Say,
) -> Config:
    """The chosen settings, or the next ones below that every GPU can take; the blocks are set up.

    Only where `asked` leaves something to the run, on GPUs that each have the whole model: a rank
    that ran out of memory while the others gather weights would leave them waiting. What the run
    had `before`, on its last start, is kept if it fits at all. Raises ValueError if nothing fits.
    """
    if not is_open(asked) or is_sharding(chosen.distributed, rank) or rank.device.type != "cuda":
        return chosen
    need = estimate_memory(chosen, "cuda", rank.world_size)
    later = need.optimizer + need.exchange  # They come with the first step.
    is_kept = (
        before is not None
        and not is_open(before)
        and describe_choice(before) == describe_choice(chosen)
    )
    # All ranks try the same.
    limit = -rank.max(-find_limit(rank.device, 0 if is_kept else RESERVE))

    def attempt(config: Config) -> int:
        set_up_blocks(model, config, rank)
        shape = (config.training.micro_batch, config.data.max_seq_length)
        with at_most(limit - later, rank.device):
            return later + measure_passes(model, shape, autocast)

    candidates = list_candidates(asked, chosen, rank.world_size, limit)
    found, took = find_first(candidates, attempt, rank)
    text = f"{describe_choice(found)}, {format_bytes(took)} of {format_bytes(limit)}"
    if found != chosen:
        text += f"; not {describe_choice(chosen)}, which did not fit"
    say(f"tried on the GPU: {text}")
    tell_change(chosen, found, rank, say)
    return found


def find_first(
    candidates: Iterable[Config], attempt: Callable[[Config], int], rank: Rank
) -> tuple[Config, int]:
    """The first settings with which no rank runs out of memory, and what the attempt took.

    All ranks try the same ones. Raises ValueError if there are none.
    """
    for candidate in candidates:
        try:
            took, fits = attempt(candidate), True
        except torch.OutOfMemoryError:
            took, fits = 0, False
        if not rank.max(not fits):
            return candidate, took
        # Another shape than the one that blocks were compiled for would have them compiled for any.
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    raise ValueError(
        f"the GPU's memory is too small for this model even with {describe_choice(candidate)}; set "
        "training.activation_checkpointing=full, a smaller training.batch_size_per_device, or "
        "distributed.strategy=fsdp on several GPUs"
    )


def find_limit(device: torch.device, reserve: float) -> int:
    """The bytes that this process may take of its GPU, those that it has taken included."""
    free, _ = torch.cuda.mem_get_info(device)
    return int((free + torch.cuda.memory_reserved(device)) * (1 - reserve))


@contextmanager
def at_most(num_bytes: int, device: torch.device) -> Iterator[None]:
    """Within this, torch takes no more of the GPU: what needs more is an OutOfMemoryError.

    On a GPU that is full there would be others, of kernels and libraries that cannot be loaded, and
    programs beside this one would lack the memory.
    """
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(max(num_bytes / total, 0.0), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def measure_passes(model: Transformer, shape: tuple[int, int], autocast: Autocast) -> int:
    """The most bytes of GPU memory at once in two micro-steps of zeros; no gradients are left.

    Two, because the second one adds to the gradients of the first.
    """
    device = next(model.parameters()).device
    tokens = torch.zeros(shape, dtype=torch.int64, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        for _ in range(2):
            with autocast():
                loss = model(tokens, tokens)
            loss.backward()
            del loss
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
