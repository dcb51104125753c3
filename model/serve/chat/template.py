"""A folder's chat template: found, and run by the process that render.py is."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.checkpoints.seal import TOKENIZER_CONFIG, CheckpointError, read_json
from model.serve.wire.errors import ApiError, refuse

TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 2**18
RENDER_SECONDS = 5
RENDERER = Path(__file__).with_name("render.py")
# What the process is told of its environment: no keys.
VARIABLES = ("PATH", "PYTHONPATH", "HOME", "SYSTEMROOT", "LANG", "TZ", "VIRTUAL_ENV")


class ChatTemplate:
    """Makes a prompt of messages, as the model was trained to read them."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self.source = source
        self.variables = dict(variables)
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt, which asks for the next message. Raises ApiError if there is none."""
        asked = {
            "template": self.source,
            "messages": messages,
            "variables": self.variables | {"add_generation_prompt": True},
        }
        answer = self._ask(json.dumps(asked).encode("ascii") + b"\n")
        if "error" in answer:
            raise refuse(
                f"the model's chat template does not take these messages: {answer['error']}",
                "messages",
                "chat_template_error",
            )
        return str(answer["text"])

    def _ask(self, line: bytes) -> dict[str, str]:
        """What the process answers; it is ended if it takes too long, and begun anew."""
        with self._turn:
            if self._process is None or self._process.poll() is not None:
                self._process = start()
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            timer = threading.Timer(RENDER_SECONDS, process.kill)
            timer.start()
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = b""
            finally:
                timer.cancel()
            if not answer:
                self.close()
                return {"error": f"it did not end within {RENDER_SECONDS} s"}
            found: dict[str, str] = json.loads(answer)
            return found

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def start() -> subprocess.Popen[bytes]:
    """The process that renders; Ctrl-C is not for it."""
    return subprocess.Popen(
        [sys.executable, "-P", str(RENDERER), str(math.ceil(RENDER_SECONDS) + 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in VARIABLES if name in os.environ},
        start_new_session=True,
    )


def find_template(folder: Path) -> ChatTemplate | None:
    """The template of a checkpoint's folder, if it has one.

    Raises CheckpointError for one that is too large or not text.
    """
    path = folder / TOKENIZER_CONFIG
    config = read_json(path) if path.is_file() else {}
    source, where = config.get("chat_template"), path
    if (folder / TEMPLATE_FILE).is_file():
        where = folder / TEMPLATE_FILE
        source = read_template(where)
    elif isinstance(source, list):  # Several, by their names.
        named = [one for one in source if isinstance(one, dict) and one.get("name") == "default"]
        source = named[0].get("template") if named else None
    if source is None:
        return None
    if not isinstance(source, str) or len(source) > MAX_TEMPLATE_BYTES:
        raise CheckpointError(
            f"{where}: the chat template is no text of at most {MAX_TEMPLATE_BYTES:,} characters; "
            "remove it, or use the model's own"
        )
    return ChatTemplate(source, read_special_tokens(config))


def read_template(path: Path) -> str:
    """The text of chat_template.jinja, or as much of it as shows that it is too long."""
    with path.open("rb") as file:
        content = file.read(4 * MAX_TEMPLATE_BYTES + 4)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8; use the model's own") from None


def read_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that templates name, such as bos_token."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def refuse_chat(name: str) -> ApiError:
    """The error for a chat with a model that has no template."""
    return refuse(
        f"{name} has no chat template, so it was not trained on chats; ask /v1/completions instead",
        "model",
        "no_chat_template",
    )
