"""A folder for `ollama create`: the model as GGUF, and the Modelfile that says how to run it.

A base model goes on with a text. Without a Modelfile, Ollama guesses a chat template for it, and
the model answers as it never learned to. One that was trained on chats has a template of its own,
which Ollama gets in its language.
"""

from pathlib import Path
from typing import Any

from model.chat.go_template import GoTemplate, translate
from model.chat.template import ChatTemplate, RendererCrash, find_template
from model.checkpoints.seal import CheckpointError
from model.export.gguf.writer import open_runtime as open_gguf
from model.export.gguf.writer import write as write_gguf
from model.export.source import Source

MODEL, MODELFILE = "model.gguf", "Modelfile"
PLAIN = "{{ .Prompt }}"


def write(source: Source, folder: Path, name: str, dtype: str) -> Path:
    """Write the folder's two files; it is made of the GGUF file alone."""
    write_gguf(source, folder, MODEL, dtype)
    (folder / MODELFILE).write_text(make_modelfile(source), encoding="utf-8")
    return folder


def open_runtime(source: Source, path: Path, dtype: str) -> Any:
    """What reads the GGUF file in the folder."""
    return open_gguf(source, path / MODEL, dtype)


def make_modelfile(source: Source) -> str:
    """The Modelfile: what a prompt becomes, where a text ends, and how long it may be."""
    jinja = find_template(source.parts.words)
    template = None if jinja is None else translate_template(source, jinja)
    stops = [] if template is None else [*template.stops]
    words = map(source.tokenizer.id_to_token, source.ends)
    ends = [word for word in words if word is not None]  # Or a row without a token.
    lines = [f"FROM ./{MODEL}", f"TEMPLATE {quote(PLAIN if template is None else template.text)}"]
    lines += [f"PARAMETER stop {quote(stop)}" for stop in dict.fromkeys([*stops, *ends])]
    lines += [f"PARAMETER num_ctx {source.config.context}"]
    if jinja is not None and template is None:
        lines[1:1] = [
            "# The checkpoint's chat template is not known in Ollama's language: prompts are taken",
            "# as they are. `ollama show --template` lists what others use.",
        ]
    return "\n".join(lines) + "\n"


def translate_template(source: Source, jinja: ChatTemplate) -> GoTemplate | None:
    """A folder's chat template in Go, if it can be told; CheckpointError if it cannot be run."""
    added = source.tokenizer.get_added_tokens_decoder().values()
    begin = source.tokenizer.id_to_token(source.begin) if source.adds_begin else ""
    try:
        return translate(jinja.render, [token.content for token in added], begin or "")
    except RendererCrash as error:
        raise CheckpointError(
            f"{source.parts.words}: the process that runs its chat template crashed: {error}"
        ) from None
    finally:
        jinja.close()


def quote(text: str) -> str:
    """A value of a Modelfile; ValueError for one that it cannot hold.

    >>> quote("<|end|>")
    '"<|end|>"'
    """
    if '"""' in text or text.endswith('"'):
        raise ValueError(f"a Modelfile cannot hold {text!r}, which ends a value there")
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
