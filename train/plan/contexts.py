"""Contexts of several lengths side by side: memory, speed, cache, and documents that are longer.

Arithmetic on the settings, as in train/plan/plan.py. How a context is stretched changes none of it.
"""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from shards.screen.lines import align, format_bytes, format_count, format_number
from train.config import Config
from train.plan.plan import Machines, Wishes, estimate_cost, need
from train.start.batch import set_training
from train.start.fit import KINDS
from train.training_config import ActivationCheckpointing

if TYPE_CHECKING:
    from shards.inspect.lengths import Lengths  # Which loads pyarrow.

CONTEXTS = (2048, 4096, 8192, 32768)
# Of a key or value in a cache, in fp16 or bf16.
CACHED_BYTES = 2
# With less of the tokens in longer documents, most windows hold nothing from so far back.
ENOUGH = 0.1


@dataclass(frozen=True)
class Context:
    """What windows of so many tokens take."""

    num_tokens: int
    # To train on a token, in whole windows, and attention's share of it, which grows with them.
    flops_per_token: int
    attention_share: float
    # Of a rank with one window, by kind of checkpointing.
    memory: dict[ActivationCheckpointing, int]
    # Of a text that fills the context.
    cache_bytes: int
    # None if the peak of the GPUs is not known.
    tokens_per_second: float | None
    # Documents of the set that are longer, and their share of its tokens; None without a set.
    longer_documents: int | None
    longer_share: float | None


def compare_contexts(
    config: Config, machines: Machines | None, wishes: Wishes, lengths: "Lengths | None"
) -> list[Context]:
    """The usual contexts and that of the run, shortest first; `lengths` are those of its set."""
    own = config.data.max_seq_length
    return [
        describe_context(set_context(config, num_tokens), machines, wishes, lengths)
        for num_tokens in sorted({*CONTEXTS, own})
    ]


def set_context(config: Config, num_tokens: int) -> Config:
    """The settings with windows of so many tokens, one at a time on each rank."""
    model = config.model
    if num_tokens > model.context:
        model = replace(model, max_position_embeddings=num_tokens)
    alone = set_training(
        config,
        global_batch_tokens=None,
        batch_size_per_device=1,
        gradient_accumulation_steps=1,
        batch_warmup_steps=0,
    )
    return replace(alone, model=model, data=replace(config.data, max_seq_length=num_tokens))


def describe_context(
    config: Config, machines: Machines | None, wishes: Wishes, lengths: "Lengths | None"
) -> Context:
    """What such windows take."""
    num_tokens, num_ranks = config.data.max_seq_length, machines.num_gpus if machines else 1
    flops = config.model.flops_per_token(num_tokens)
    cost = estimate_cost(config, machines, wishes, tokens=0) if machines else None
    longer = lengths.count_longer(num_tokens) if lengths else None
    return Context(
        num_tokens,
        flops,
        1 - config.model.flops_per_token(0) / flops,
        {kind: need(config, kind, 1, num_ranks) for kind in KINDS},
        num_tokens * count_cache_bytes(config),
        cost.tokens_per_second if cost else None,
        longer[0] if longer else None,
        longer[1] / max(lengths.num_tokens, 1) if lengths and longer else None,
    )


def count_cache_bytes(config: Config) -> int:
    """Bytes that a token takes in a cache: its key and value in each layer and head of them."""
    model = config.model
    return 2 * model.num_hidden_layers * model.num_kv_heads * model.head_size * CACHED_BYTES


def tabulate_contexts(
    config: Config, machines: Machines | None, contexts: list[Context]
) -> list[str]:
    """The contexts as lines: a table, what its columns are, and advice where it is needed."""
    has = machines.num_bytes if machines else None
    head = ["context", "FLOPs/token", "attention", *KINDS, "KV cache"]
    head += ["tokens/s"] if contexts[0].tokens_per_second else []
    head += ["longer documents", "of tokens"] if contexts[0].longer_documents is not None else []
    rows = [head, *(list_cells(context, has) for context in contexts)]
    lines = [
        f"windows of several lengths, one at a time; {', '.join(KINDS)}: memory of a GPU by "
        "training.activation_checkpointing",
        "",
        *align(rows),
        "",
        f"(the KV cache of one text in fp16: {count_cache_bytes(config):,} bytes a token"
        f"{'; in brackets: does not fit' if has else ''})",
    ]
    return [*lines, *advise(config, contexts)]


def list_cells(context: Context, has: int | None) -> list[str]:
    """A context's row."""
    cells = [
        f"{context.num_tokens:,}",
        format_count(context.flops_per_token),
        f"{context.attention_share:.0%}",
    ]
    for size in context.memory.values():
        text = format_bytes(size)
        cells.append(text if has is None or size <= has else f"({text})")
    cells.append(format_bytes(context.cache_bytes))
    if context.tokens_per_second:
        cells.append(format_number(context.tokens_per_second))
    if context.longer_documents is not None and context.longer_share is not None:
        cells += [f"{context.longer_documents:,}", f"{context.longer_share:.1%}"]
    return cells


def advise(config: Config, contexts: list[Context]) -> list[str]:
    """What to do where too few documents fill the run's windows; nothing where enough do."""
    length = config.data.max_seq_length
    own = next(context for context in contexts if context.num_tokens == length)
    if own.longer_share is None or own.longer_share >= ENOUGH:
        return []
    return [
        f"few documents are longer than data.max_seq_length={length:,}: they have "
        f"{own.longer_share:.1%} of the tokens. Far positions are learned from them; weigh them in "
        f"data.mixture, with where: num_tokens > {length // 2}, or add longer ones to the set"
    ]


def contexts_as_json(contexts: list[Context]) -> list[dict[str, Any]]:
    """The contexts as plain data."""
    return [asdict(context) for context in contexts]
