"""The micro-batch tried on the GPU: two forward and backward passes, and the memory they took."""

from collections.abc import Callable, Iterable

import torch

from model.transformer import Transformer
from shards.screen.lines import Say, format_bytes
from train.config import Config
from train.ranks.distributed import Rank
from train.start.batch import list_micro_batches, set_training, settle_batch
from train.start.memory import estimate_memory
from train.step.precision import Autocast

# Left free: memory in pieces too small for what comes.
RESERVE = 0.05


def try_micro_batch(
    asked: Config, chosen: Config, model: Transformer, rank: Rank, autocast: Autocast, say: Say
) -> Config:
    """The chosen settings, or those with the largest micro-batch below that every GPU can take.

    Only where `asked` leaves the micro-batch to the run, on GPUs that each have the whole model: a
    rank that ran out of memory while the others gather weights would leave them waiting.
    """
    is_sharded = chosen.distributed.strategy == "fsdp" and rank.world_size > 1
    is_open = asked.training.batch_size_per_device == "auto"
    if not is_open or is_sharded or rank.device.type != "cuda":
        return chosen
    need = estimate_memory(chosen, "cuda", rank.world_size)
    later = need.optimizer + need.exchange  # They come with the first step.
    limit = find_limit(rank.device)
    took: dict[int, int] = {}

    def attempt(micro_batch: int) -> bool:
        shape = (micro_batch, chosen.data.max_seq_length)
        took[micro_batch] = later + measure_passes(model, shape, autocast)
        return took[micro_batch] <= limit

    largest = chosen.training.micro_batch
    sizes = [size for size in list_micro_batches(asked, rank.world_size) if size <= largest]
    size = find_largest(sizes, attempt, rank)
    say(
        f"a micro-batch of {size:,} was tried on the GPU: {format_bytes(took[size])} of "
        f"{format_bytes(limit)}{f'; {largest:,} did not fit' if size < largest else ''}"
    )
    settled = set_training(
        chosen,
        batch_size_per_device=size,
        gradient_accumulation_steps=asked.training.gradient_accumulation_steps,
    )
    return settle_batch(settled, rank.world_size)


def find_largest(sizes: Iterable[int], attempt: Callable[[int], bool], rank: Rank) -> int:
    """The first of `sizes` with which the attempt succeeds on every rank; all try the same ones.

    Raises ValueError if none is.
    """
    for size in sizes:
        try:
            fits = attempt(size)
        except torch.OutOfMemoryError:
            fits = False
        if not rank.max(not fits):
            return size
    raise ValueError(
        "the GPU's memory is too small for this model even with one sample at a time; set "
        "training.activation_checkpointing=full, or distributed.strategy=fsdp on several GPUs"
    )


def find_limit(device: torch.device) -> int:
    """The bytes that this process may take of its GPU, those that it has taken included."""
    free, _ = torch.cuda.mem_get_info(device)
    return int((free + torch.cuda.memory_reserved(device)) * (1 - RESERVE))


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
