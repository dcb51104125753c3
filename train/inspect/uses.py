"""The commands that a checkpoint is used with, and the one with which its run goes on."""

import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from model.checkpoints.seal import CHAT_TEMPLATE
from shards.mixture.entries import Entry, spell_entries
from shards.screen.names import quote
from train.checkpoints.position import read_position, read_run_config
from train.config import SECTIONS, Config
from train.settings import RECIPES, list_named_configs, load_config


def list_model_uses(folder: Path, *more: str, exports: bool = True) -> list[str]:
    """Commands that write texts with a checkpoint, or with the newest in a folder of them.

    `more` are words for `velocity sample` with which it does something else.
    """
    name = quote(folder)
    uses = [f"velocity chat --ckpt {name}"] if (folder / CHAT_TEMPLATE).is_file() else []
    uses.append(f"velocity sample --ckpt {name}")
    uses += [f"velocity sample --ckpt {name} {words}" for words in more]
    uses.append(f"velocity serve --ckpt {name}")
    if exports:
        uses.append(f"velocity export --ckpt {name} --format gguf --out model.gguf")
    return uses


def load_in_python(folder: Path) -> str:
    """A command that loads a model's folder with transformers."""
    code = (
        "from transformers import AutoModelForCausalLM; "
        f"print(AutoModelForCausalLM.from_pretrained({str(folder)!r}))"
    )
    return shlex.join(["python", "-c", code])


def find_resume_command(run: Path, newest: Path) -> str | None:
    """The command that goes on with a run from its newest checkpoint; None if it is at its end.

    It has the run's own settings, as they differ from those of the named configuration that is
    nearest, and its number of ranks. Raises ValueError, KeyError, TypeError or OSError where the
    checkpoint does not say these.
    """
    config, position = read_run_config(newest), read_position(newest)
    training = config.training
    if position.step >= training.num_training_steps:
        return None
    here = replace(config.infrastructure, output_dir=str(run), resume_from_checkpoint="auto")
    config = replace(config, infrastructure=here)
    per_rank = training.batch_size_per_device, training.gradient_accumulation_steps
    num_ranks = 1
    if isinstance(per_rank[0], int) and isinstance(per_rank[1], int):
        num_ranks = max(position.history[-1].samples_per_step // (per_rank[0] * per_rank[1]), 1)
    bases = {"": load_config()} | {f" --config {n}": load_config(n) for n in list_named_configs()}
    if config.model.start is not None:
        start = f"model.start={config.model.start}"
        bases |= {f" --config {n} {quote(start)}": load_config(n, [start]) for n in RECIPES}
    options = {option: [*list_differences(config, base)] for option, base in bases.items()}
    option = min(options, key=lambda option: len(options[option]))
    words = "".join(f" {quote(word)}" for word in options[option])
    return f"torchrun --nproc_per_node {num_ranks} -m train{option}{words}"


def list_differences(config: Config, base: Config) -> Iterator[str]:
    """The words `section.key=value` that make the settings of `base` those of `config`."""
    for section in SECTIONS:
        own, others = getattr(config, section), getattr(base, section)
        for entry in fields(own):
            value = getattr(own, entry.name)
            if value != getattr(others, entry.name):
                yield f"{section}.{entry.name}={spell(value)}"


def spell(value: Any) -> str:
    """A setting's value as the command line reads it.

    >>> spell(None), spell(True), spell(0.0006), spell("runs/a b"), spell(("a", "b=c"))
    ('null', 'true', '0.0006', 'runs/a b', 'a,b=c')
    """
    if isinstance(value, tuple):
        is_mixture = any(isinstance(part, Entry) for part in value)
        return spell_entries(value) if is_mixture else ",".join(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
