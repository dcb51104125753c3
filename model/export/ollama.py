"""A folder for `ollama create`: the model as GGUF, and the Modelfile that says how to run it.

A base model goes on with a text. Without a Modelfile, Ollama guesses a chat template for it, and
the model answers as it never learned to.
"""

from pathlib import Path
from typing import Any

from model.checkpoints.chat_template import read_chat_template
from model.export.gguf import open_runtime as open_gguf
from model.export.gguf import write as write_gguf
from model.export.source import Source

MODEL, MODELFILE = "model.gguf", "Modelfile"
PLAIN = "{{ .Prompt }}"
# Chat templates of Jinja that are known word for word, and the same for Ollama's Go. Both are
# ChatML, with and without the line that asks for an answer made optional.
CHATML = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
_LOOP = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}"
)
_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
KNOWN_TEMPLATES = {_LOOP + _ASK: (CHATML, ("<|im_end|>",))}


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
    stored = read_chat_template(source.parts.words)
    written = "" if stored is None else stored.source.strip()
    template, stops = KNOWN_TEMPLATES.get(written, (PLAIN, ()))
    words = map(source.tokenizer.id_to_token, source.ends)
    ends = [word for word in words if word is not None]  # Or a row without a token.
    lines = [f"FROM ./{MODEL}", f"TEMPLATE {quote(template)}"]
    lines += [f"PARAMETER stop {quote(stop)}" for stop in dict.fromkeys([*stops, *ends])]
    lines += [f"PARAMETER num_ctx {source.config.context}"]
    if written and template == PLAIN:
        lines[1:1] = [
            "# The checkpoint's chat template is not known in Ollama's language: prompts are taken",
            "# as they are. `ollama show --template` lists what others use.",
        ]
    return "\n".join(lines) + "\n"


def quote(text: str) -> str:
    """A value of a Modelfile; ValueError for one that it cannot hold.

    >>> quote("<|end|>")
    '"<|end|>"'
    """
    if '"""' in text or text.endswith('"'):
        raise ValueError(f"a Modelfile cannot hold {text!r}, which ends a value there")
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
