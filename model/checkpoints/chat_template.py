"""A folder's chat template, read: the program that makes a prompt of messages, and its tokens.

    chat_template.jinja                            what transformers 5 writes; it comes first
    tokenizer_config.json, chat_template           a text
    the same, as a list of {"name", "template"}    of which the one that is called default is taken

It is a stranger's program: nothing here runs it. Nothing here imports torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoints.seal import CHAT_TEMPLATE, TOKENIZER_CONFIG, CheckpointError, read_json

TEMPLATE = CHAT_TEMPLATE
MAX_TEMPLATE_CHARS = 2**18


@dataclass(frozen=True)
class StoredTemplate:
    """A chat template as a folder has it."""

    # In Jinja.
    source: str
    # The special tokens that templates name, such as bos_token.
    tokens: Mapping[str, str]


def read_chat_template(folder: Path) -> StoredTemplate | None:
    """The chat template of a checkpoint's folder, if it has one.

    Raises CheckpointError, naming the file, for one that is too large or not text.
    """
    path = folder / TOKENIZER_CONFIG
    config = read_json(path) if path.is_file() else {}
    source = config.get("chat_template")
    if (folder / TEMPLATE).is_file():
        path = folder / TEMPLATE
        source = read_template_file(path)
    elif isinstance(source, list):
        named = [one for one in source if isinstance(one, dict) and one.get("name") == "default"]
        source = named[0].get("template") if named else None
    if source is None:
        return None
    check_length(source, path)
    return StoredTemplate(source, read_special_tokens(config))


def read_template_file(path: Path) -> str:
    """The template in a file; CheckpointError if it is too long or not UTF-8.

    No more of the file is read than shows that it is too long.
    """
    with path.open("rb") as file:
        content = file.read(4 * MAX_TEMPLATE_CHARS + 4)
    try:
        source = content.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: is not UTF-8; expected a chat template in Jinja") from None
    check_length(source, path)
    return source


def check_length(source: object, path: Path) -> None:
    """Raise CheckpointError for a template that is not a text, or is longer than any real one."""
    if not isinstance(source, str) or len(source) > MAX_TEMPLATE_CHARS:
        raise CheckpointError(
            f"{path}: its chat template is not a text of at most {MAX_TEMPLATE_CHARS:,} "
            "characters; remove it, or use the model's own"
        )


def read_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that templates name, as a checkpoint's folder has them."""
    path = folder / TOKENIZER_CONFIG
    return read_special_tokens(read_json(path)) if path.is_file() else {}


def read_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json names, by their names there."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def hide_generation(source: str) -> str:
    """The template for readers that know no tag `generation`: one that is always true stands there.

    >>> hide_generation("{%- generation -%}{{ content }}{% endgeneration %}")
    '{%- if true -%}{{ content }}{% endif %}'
    """
    opened = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", source)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", opened)
