"""The named configurations: what each needs and reaches, and which one fits a machine and a set."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from model.config import DEFAULT_VOCAB_SIZE
from shards.screen.lines import align, format_bytes, format_count
from shards.screen.names import quote
from train.config import Config
from train.settings import RECIPES, list_named_configs, load_config
from train.start.fit import find_least
from train.start.machine import find_gpus
from train.start.memory import Memory, estimate_memory

# The one for a first try on any machine.
SMALLEST = "tiny"
# Repeating a set up to four times is almost as good as new text (Muennighoff et al. 2023).
MAX_EPOCHS = 4


@dataclass(frozen=True)
class NamedConfig:
    """A file of train/configs/."""

    name: str
    config: Config

    @property
    def option(self) -> str:
        """What chooses it on the command line."""
        return f" --config {self.name}"

    def need(
        self, device_type: str, world_size: int = 1, num_ids: int = DEFAULT_VOCAB_SIZE
    ) -> Memory:
        """The least memory of one rank, with a set whose tokenizer has so many ids.

        Where the settings say auto, more is taken if it is there.
        """
        config = replace(self.config, model=self.config.model.fit(num_ids))
        return estimate_memory(find_least(config, 1), device_type, world_size)


@cache
def named_configs() -> list[NamedConfig]:
    """All of them, the smallest model first."""
    return [NamedConfig(name, load_config(name)) for name in list_named_configs()]


def largest_config(
    device_type: str, num_bytes: int, world_size: int, num_ids: int
) -> NamedConfig | None:
    """The largest that fits into a rank's `num_bytes`; None if none does."""
    fitting = [
        named
        for named in named_configs()
        if named.need(device_type, world_size, num_ids).peak <= num_bytes
    ]
    return fitting[-1] if fitting else None


def tabulate_configs() -> list[list[str]]:
    """A row for each: name, parameters, memory, checkpoint, and the run's tokens on one rank."""
    rows = [["--config", "parameters", "least on a GPU", "on a CPU", "a checkpoint", "tokens"]]
    for named in named_configs():
        num_parameters = named.config.model.num_parameters()
        sizes = [named.need("cuda").peak, named.need("cpu").peak, named.config.checkpoint_bytes]
        tokens = format_count(named.config.count_tokens(1))
        rows.append([named.name, f"{num_parameters:,}", *map(format_bytes, sizes), tokens])
    return rows


def list_configs() -> list[str]:
    """The same as lines for the terminal, in columns."""
    names = ", ".join(RECIPES)
    return [
        *align(tabulate_configs()),
        f"{names}: fine-tuning, of the model that model.start names",
    ]


def suggest_command(
    folder: Path,
    num_tokens: int | None = None,
    num_ids: int = DEFAULT_VOCAB_SIZE,
    row_tokens: int | None = None,
) -> str:
    """The command that trains on the set in `folder`, with the configuration that fits best.

    That is the largest that fits this machine's GPUs and does not read a token of the set, which
    has `num_tokens` of `num_ids` ids, more than MAX_EPOCHS times; without a GPU the smallest.
    A packed set's rows, of `row_tokens`, are its windows.
    """
    gpus = find_gpus()
    named = choose(gpus, num_tokens, num_ids)
    shards = "" if folder == Path("shards") else f" {quote(f'data.shards={folder}')}"
    ranks = 1 if named.name == SMALLEST else max(len(gpus), 1)
    length = ""
    if row_tokens not in (None, named.config.data.max_seq_length):
        length = f" data.max_seq_length={row_tokens}"
        if row_tokens > named.config.model.context:
            length += f" model.max_position_embeddings={row_tokens}"
    return f"torchrun --nproc_per_node {ranks} -m train{named.option}{shards}{length}"


def choose(gpus: list[int], num_tokens: int | None, num_ids: int) -> NamedConfig:
    """The configuration for these GPUs' bytes of memory and a set of so many tokens and ids."""
    fitting = [
        named
        for named in named_configs()
        if gpus
        and named.need("cuda", len(gpus), num_ids).peak <= min(gpus)
        and named.config.samples_per_step(len(gpus)) >= len(gpus)
        and (num_tokens is None or named.config.count_tokens(len(gpus)) <= MAX_EPOCHS * num_tokens)
    ]
    [smallest] = [named for named in named_configs() if named.name == SMALLEST]
    return fitting[-1] if fitting else smallest
