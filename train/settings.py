"""Settings read from a YAML file, the command line or a checkpoint: every name and type checked.

    load_config("tiny", ["training.learning_rate=3e-4"])

The defaults come first, then the file, then the overrides. File and command line give text, which
means what the setting's type says, alike in both (train/words/words.py).
"""

import difflib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from shards.mixture.entries import Entry as SetEntry
from shards.mixture.entries import read_entries as read_set_entries
from shards.screen.secrets import learn_words
from train.config import SECTIONS, Config
from train.words.words import (
    describe,
    expand_named,
    expand_path,
    expand_union,
    fits,
    hint_number,
    is_list,
    read_word,
    show,
)
from train.words.yaml_file import (
    Entry,
    read_entries,
    read_list,
    read_nested,
    read_settings_text,
)

# Keys of the original VelocityLM that have no effect here: which values are harmless, and what to
# tell a user who sets another one. An empty tuple: any value is harmless.
KEYS_WITHOUT_MEANING: dict[str, tuple[tuple[object, ...], str]] = {
    "model.hidden_act": (("silu",), "the model has SwiGLU, whose activation is silu"),
    "model.use_cache": ((), "sampling always uses a KV cache, training never does"),
    "model.attention_dropout": ((0,), "the model has no dropout"),
    "model.hidden_dropout": ((0,), "the model has no dropout"),
    "data.dataset_name": (("tiiuae/falcon-refinedweb",), "velocity prep --dataset decides"),
    "data.dataset_config": (("default",), "velocity prep --dataset-config decides"),
    "data.text_column": (("content",), "velocity prep --text-column decides"),
    "data.num_workers": ((), "one thread reads the shards ahead; the number changes nothing"),
    "data.preprocessing_num_workers": ((), "velocity prep --workers decides"),
    "infrastructure.num_gpus": ((), "torchrun --nproc_per_node decides"),
    "distributed.find_unused_parameters": ((False,), "every parameter is used in every step"),
}


SHARDS, MIXTURE = "data.shards", "data.mixture"
# Named settings that go on from a model, which model.start names.
RECIPES = ("sft", "dpo")
LENGTH = "data.max_seq_length"
STEPS, EPOCHS = "training.num_training_steps", "training.epochs"
# Settings that are paths, in which ~ and $NAME mean what they mean to a shell.
PATHS = (
    "model.start",
    SHARDS,
    "training.eval_sets",
    "training.eval_tasks",
    "training.sample_prompts",
    "infrastructure.output_dir",
    "infrastructure.logging_dir",
    "infrastructure.resume_from_checkpoint",
)
LISTS = {
    f"{section}.{key}"
    for section, leaf in SECTIONS.items()
    for key, wanted in typing.get_type_hints(leaf).items()
    if is_list(wanted)
}


def load_config(name_or_path: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The settings of a run: defaults, then a file (or a name: tiny), then `section.key=value`s.

    Raises ValueError, naming key and file or the words, for an unknown key or a wrong value.
    """
    from_file = [*read_file(name_or_path)] if name_or_path else []
    from_words = [parse_override(override) for override in overrides]
    for entries in (from_file, from_words):
        refuse_contradiction(entries)
    for names in (names_data, names_length):
        if names(from_words):
            from_file = [entry for entry in from_file if not names([entry])]
    if any((entry.section, entry.key) == ("model", "start") for entry in from_words):
        # The file says how to train; the folder has a shape of its own.
        from_file = [entry for entry in from_file if entry.section != "model"]
    config = build_config(layer([*from_file, *from_words], expand_path))
    if name_or_path in RECIPES and config.model.start is None:
        raise ValueError(
            f"--config {name_or_path} goes on from a model; add model.start=FOLDER, a checkpoint "
            "or a model in Hugging Face's format"
        )
    return config


def build_config(tree: Mapping[str, Mapping[str, Any]]) -> Config:
    """The settings of a checked tree; what it leaves out gets its default."""
    return Config(**{name: leaf(**tree.get(name, {})) for name, leaf in SECTIONS.items()})


def config_from_dict(tree: Any, origin: str) -> Config:
    """The settings that `asdict(config)` wrote, for instance into a checkpoint."""
    return build_config(layer(list_entries(tree, origin)))


def list_entries(tree: Any, origin: str) -> Iterator[Entry]:
    """The settings of a tree read from JSON."""
    if not isinstance(tree, dict):
        raise ValueError(f"{origin}: is {show(tree)}; expected settings in sections")
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise ValueError(f"{origin}: {section} is a section; expected keys below it")
        yield from (Entry(section, key, value, f"{origin}: ") for key, value in values.items())


def config_to_dict(config: Config) -> dict[str, Any]:
    """The settings as plain data, for JSON and YAML."""
    sections = asdict(config).items()
    return {name: {key: make_plain(v) for key, v in keys.items()} for name, keys in sections}


def make_plain(value: Any) -> Any:
    """A value as JSON gives it back: a tuple is a list there."""
    return [*value] if isinstance(value, tuple) else value


@cache
def list_named_configs() -> list[str]:
    """The names that --config accepts besides paths and RECIPES, smallest model first."""
    folder = resources.files("train") / "configs"
    names = {entry.name.removesuffix(".yaml") for entry in folder.iterdir()} - {*RECIPES}
    return sorted(names, key=lambda name: load_config(name).model.num_parameters())


def read_file(name_or_path: str) -> Iterator[Entry]:
    """The entries of a settings file, or of a named configuration."""
    named = resources.files("train") / "configs" / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if path.name == name_or_path and named.is_file():
        text = named.read_text("utf-8")
    elif path.exists():
        text = read_settings_text(path)
    else:
        raise ValueError(
            f"{name_or_path}: no such file; --config takes a path or one of "
            f"{', '.join([*list_named_configs(), *RECIPES])}"
        )
    learn_words(text.splitlines())
    return read_entries(text, name_or_path, LISTS)


def parse_override(override: str) -> Entry:
    """The entry of `section.key=value`; the value is the text as it stands.

    >>> parse_override("infrastructure.output_dir=runs/a #1").value
    'runs/a #1'
    """
    name, equals, value = override.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and key):
        owners = [other for other in SECTIONS if name in typing.get_type_hints(SECTIONS[other])]
        hint = f"; did you mean {owners[0]}.{name}?" if owners else ""
        raise ValueError(
            f"{override[:120]}: expected section.key=value, such as training.max_grad_norm=1{hint}"
        )
    return Entry(section, key, value, "")


def layer(
    entries: Iterable[Entry], read_path: Callable[[str, Entry], str] | None = None
) -> dict[str, dict[str, Any]]:
    """The entries as a tree of checked values; of two for one key the later one counts.

    `read_path` reads those that are paths.
    """
    tree: dict[str, dict[str, Any]] = {}
    for entry in entries:
        key, value = check_entry(entry)
        name = f"{entry.section}.{key}"
        if read_path and name in PATHS and isinstance(value, str):
            value = read_path(value, entry)
        if read_path and name == MIXTURE and value is not None:
            value = tuple(replace(e, shards=read_path(e.shards, entry)) for e in value)
        elif read_path and name in PATHS and isinstance(value, tuple):
            value = tuple(expand_named(part, entry) for part in value)
        if key:
            tree.setdefault(entry.section, {})[key] = value
    return tree


def check_entry(entry: Entry) -> tuple[str, Any]:
    """Key and value in this project's terms; an empty key means to leave it out."""
    section, key, value, place = entry.section, entry.key, entry.value, entry.place
    if section not in SECTIONS:
        raise ValueError(f"{place}no section {show(section)}{suggest(section, SECTIONS)}")
    name = f"{section}.{key}"
    if name == "training.fp16":
        return "precision", "fp16" if convert(value, bool, name, place) else "fp32"
    if name == "training.gradient_checkpointing":
        is_on = convert(value, bool, name, place)
        return "activation_checkpointing", "full" if is_on else "none"
    if name in KEYS_WITHOUT_MEANING:
        harmless, reason = KEYS_WITHOUT_MEANING[name]
        if harmless and read_word(value, type(harmless[0])) not in harmless:
            raise ValueError(f"{place}{name} is {show(value)}, which is not supported: {reason}")
        return "", None
    if name == MIXTURE:
        return key, convert_mixture(value, place)
    if name == LENGTH and value == "auto":
        return key, 0
    known = typing.get_type_hints(SECTIONS[section])
    if key not in known:
        raise ValueError(f"{place}no key {show(name)}{suggest(key, known, section)}")
    converted = convert(value, known[key], name, place)
    if name == LENGTH and converted == 0:  # Which stands for auto.
        raise ValueError(f"{place}{name} is 0; expected at least 1 token, or auto")
    return key, converted


def names_data(entries: Sequence[Entry]) -> bool:
    """Whether any of the entries says which sets a run reads."""
    named = {f"{entry.section}.{entry.key}": entry for entry in entries}
    return SHARDS in named or (MIXTURE in named and check_entry(named[MIXTURE])[1] is not None)


def names_length(entries: Sequence[Entry]) -> bool:
    """Whether any of the entries says how far a run goes."""
    named = {f"{entry.section}.{entry.key}": entry for entry in entries}
    return STEPS in named or (EPOCHS in named and check_entry(named[EPOCHS])[1] is not None)


def refuse_contradiction(entries: Sequence[Entry]) -> None:
    """Raise ValueError if one file, or one command line, names one thing twice.

    That is two kinds of checkpointing, one set and several, or how far a run goes.
    """
    lengths = {f"{entry.section}.{entry.key}": entry for entry in entries if names_length([entry])}
    if len(lengths) == 2 and names_length([lengths[EPOCHS]]):
        raise ValueError(
            f"{lengths[EPOCHS].place}{EPOCHS} and {STEPS} both say how far the run goes; keep one "
            "of the two"
        )
    sets = {f"{entry.section}.{entry.key}": entry for entry in entries if names_data([entry])}
    if len(sets) == 2:
        raise ValueError(
            f"{sets[SHARDS].place}{SHARDS} names one set, and {MIXTURE} several; keep one of the "
            f"two: the set of {SHARDS} may be one of {MIXTURE}"
        )
    old, new = "gradient_checkpointing", "activation_checkpointing"
    found = {e.key: e for e in entries if e.section == "training" and e.key in (old, new)}
    meant = {key: check_entry(entry)[1] for key, entry in found.items()}
    if len({*meant.values()}) > 1:
        raise ValueError(
            f"{found[old].place}training.{old}={found[old].value} means training.{new}="
            f"{meant[old]}, but training.{new} is {meant[new]}; keep one of the two"
        )


def convert_mixture(value: Any, place: str) -> tuple[SetEntry, ...] | None:
    """The entries of `data.mixture`, from plain data or, on the command line, from its text."""
    if isinstance(value, str):
        value = read_nested(value, MIXTURE)
    if value is None:
        return None
    try:
        return read_set_entries(value)
    except ValueError as error:
        raise ValueError(f"{place}{MIXTURE}: {error}") from None


def convert(value: Any, wanted: Any, name: str, place: str) -> Any:
    """The value as the field's type; text such as 6e-4 is a number where one is expected."""
    if is_list(wanted) and isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = read_list(value, f"{place}{name}")
    converted = read_word(value, wanted)
    if not fits(converted, wanted):
        expected = describe(wanted)
        if {int, float} & {*expand_union(wanted)}:
            expected += hint_number(value)
        raise ValueError(f"{place}{name} is {show(value)}; expected {expected}")
    return float(converted) if wanted is float else converted


def suggest(name: str, known: Mapping[str, Any], section: str = "") -> str:
    """A hint: the nearest known name, the section that has it, or all names."""
    prefix = f"{section}." if section else ""
    owners = [other for other in SECTIONS if name in typing.get_type_hints(SECTIONS[other])]
    if section and owners:
        return f"; did you mean {owners[0]}.{name}?"
    nearest = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean {prefix}{nearest[0]}?"
    return f"; expected one of {', '.join(prefix + key for key in known)}"
