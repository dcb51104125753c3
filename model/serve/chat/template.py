"""A folder's chat template, run by the process that render.py is."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.checkpoints.chat_template import read_chat_template
from model.serve.wire.errors import ApiError, refuse

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
    """The template of a checkpoint's folder, if it has one; CheckpointError for a bad one."""
    stored = read_chat_template(folder)
    return None if stored is None else ChatTemplate(stored.source, stored.tokens)


def refuse_chat(name: str) -> ApiError:
    """The error for a chat with a model that has no template."""
    return refuse(
        f"{name} has no chat template, so it was not trained on chats; ask /v1/completions instead",
        "model",
        "no_chat_template",
    )
