"""Settings read from a YAML file, the command line or a checkpoint: every name and type checked.

    load_config("tiny", ["training.learning_rate=3e-4"])

The defaults come first, then the file, then the overrides.
"""

import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from shards.secrets import learn_words
from train.config import SECTIONS, Config

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


def load_config(name_or_path: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The settings of a run: defaults, then a file (or a name: tiny), then `section.key=value`s.

    Raises ValueError, naming key and file, for an unknown key or a wrong value.
    """
    tree, origin = read_file(name_or_path) if name_or_path else ({}, "")
    layered = {section: dict(values) for section, values in check_tree(tree, origin).items()}
    for override in overrides:
        section, key, value = parse_override(override)
        checked = check_tree({section: {key: value}}, override)
        layered.setdefault(section, {}).update(checked[section])
    return build_config(layered)


def build_config(tree: Mapping[str, Mapping[str, Any]]) -> Config:
    """The settings of a checked tree; what it leaves out gets its default."""
    return Config(**{name: leaf(**tree.get(name, {})) for name, leaf in SECTIONS.items()})


def config_from_dict(tree: Mapping[str, Any], origin: str) -> Config:
    """The settings that `asdict(config)` wrote, for instance into a checkpoint."""
    return build_config(check_tree(tree, origin))


def config_to_dict(config: Config) -> dict[str, Any]:
    """The settings as plain data, for JSON and YAML."""
    return asdict(config)


def list_named_configs() -> list[str]:
    """The names that --config accepts besides paths."""
    folder = resources.files("train") / "configs"
    return sorted(Path(entry.name).stem for entry in folder.iterdir())


def read_file(name_or_path: str) -> tuple[Mapping[str, Any], str]:
    """A settings file as plain data, and what to call it in messages."""
    if name_or_path in list_named_configs():
        text = (resources.files("train") / "configs" / f"{name_or_path}.yaml").read_text("utf-8")
    else:
        path = Path(name_or_path)
        if not path.is_file():
            names = ", ".join(list_named_configs())
            raise ValueError(
                f"{name_or_path}: no such file; --config takes a path or one of {names}"
            )
        text = path.read_text("utf-8")
    learn_words(text.splitlines())
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ValueError(f"{name_or_path}: not valid YAML ({detail})") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{name_or_path}: expected sections such as `training:` with keys below")
    return tree, name_or_path


def parse_override(override: str) -> tuple[str, str, Any]:
    """Section, key and value of `section.key=value`; the value is read as YAML.

    >>> parse_override("training.learning_rate=3e-4")
    ('training', 'learning_rate', '3e-4')
    """
    name, equals, value = override.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and key):
        raise ValueError(
            f"{override}: expected section.key=value, such as training.max_grad_norm=1"
        )
    try:
        return section, key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"{override}: the value is not valid YAML") from None


def check_tree(tree: Mapping[str, Any], origin: str) -> dict[str, dict[str, Any]]:
    """Check names and types; the values come back converted to their fields' types."""
    checked: dict[str, dict[str, Any]] = {}
    for section, values in tree.items():
        if section not in SECTIONS:
            raise ValueError(f"{origin}: no section {section!r}{suggest(section, SECTIONS)}")
        if not isinstance(values, Mapping):
            raise ValueError(f"{origin}: {section} is a section; expected keys below it")
        pairs = (check_key(section, key, value, origin) for key, value in values.items())
        checked[section] = {key: value for key, value in pairs if key}
    return checked


def check_key(section: str, key: str, value: Any, origin: str) -> tuple[str, Any]:
    """The key and value in this project's terms; an empty key means to leave it out."""
    name = f"{section}.{key}"
    if name == "training.fp16":
        return "precision", "fp16" if convert(value, bool, name, origin) else "fp32"
    if name in KEYS_WITHOUT_MEANING:
        harmless, reason = KEYS_WITHOUT_MEANING[name]
        if harmless and value not in harmless:
            raise ValueError(f"{origin}: {name} is {value!r}, which is not supported: {reason}")
        return "", None
    known = typing.get_type_hints(SECTIONS[section])
    if key not in known:
        raise ValueError(f"{origin}: no key {name!r}{suggest(key, known, section)}")
    return key, convert(value, known[key], name, origin)


def convert(value: Any, wanted: Any, name: str, origin: str) -> Any:
    """The value as the field's type; text such as 6e-4 is a number where one is expected."""
    try:
        # pydantic would take true for the number 1.
        if isinstance(value, bool) and bool not in expand_union(wanted):
            raise TypeError
        converted = TypeAdapter(wanted).validate_python(value)
        if isinstance(converted, float) and not math.isfinite(converted):
            raise TypeError
        return converted
    except (TypeError, ValidationError):
        raise ValueError(f"{origin}: {name} is {value!r}; expected {describe(wanted)}") from None


def expand_union(wanted: Any) -> tuple[Any, ...]:
    """The members of a union; any other type is its own only member."""
    return typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)


def describe(wanted: Any) -> str:
    """A field's type in words.

    >>> describe(int | None)
    'a whole number or null'
    """
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
    members = expand_union(wanted)
    if typing.get_origin(wanted) is Literal:
        return "one of " + ", ".join(typing.get_args(wanted))
    return " or ".join(words[member] for member in members)


def suggest(name: str, known: Mapping[str, Any], section: str = "") -> str:
    """A hint: the nearest known name, or all of them."""
    prefix = f"{section}." if section else ""
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean {prefix}{nearest[0]}?"
    return f"; expected one of {', '.join(prefix + key for key in known)}"
