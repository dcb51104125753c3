"""A chat template, run by the process that render.py is."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

from model.checkpoints.chat_template import read_chat_template, read_template_file

RENDER_SECONDS = 5
# For Python and Jinja to be loaded, however busy the machine is.
START_SECONDS = 60
RENDERER = Path(__file__).with_name("render.py")
# What the process is told of its environment: no keys.
VARIABLES = ("PATH", "PYTHONPATH", "HOME", "SYSTEMROOT", "LANG", "TZ", "VIRTUAL_ENV")

Process = subprocess.Popen[bytes]


class RenderError(Exception):
    """The template makes no prompt of the messages; the message is a clause that says why."""


class RendererCrash(Exception):
    """The process that renders has ended by itself; the message is a clause that says how."""


@dataclass(frozen=True)
class Asked:
    """Messages to be made text of."""

    messages: Sequence[Mapping[str, Any]]
    # Whether the text ends by asking for the next message.
    asks: bool = False
    # Characters around what an assistant wrote, where the template tells.
    marks: tuple[str, str] = ("", "")


class ChatTemplate:
    """Makes text of messages, as the model was trained to read them.

    Without a clock, a template does not learn what day it is, and makes the same text on every one.
    """

    def __init__(self, source: str, variables: Mapping[str, str], has_clock: bool = True) -> None:
        self.source = source
        self.variables = dict(variables)
        self.has_clock = has_clock
        self._process: Process | None = None
        self._turn = threading.Lock()

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt, which asks for the next message. Raises RenderError and RendererCrash."""
        [answer] = self.render_all([Asked(messages, asks=True)])
        if isinstance(answer, RenderError):
            raise answer
        return answer

    def render_all(self, chats: Sequence[Asked]) -> list[str | RenderError]:
        """The text of each chat, or why there is none, asked for at once. Raises RendererCrash."""
        asked = {
            "template": self.source,
            "has_clock": self.has_clock,
            "chats": [
                {
                    "messages": chat.messages,
                    "variables": self.variables | {"add_generation_prompt": chat.asks},
                    "marks": chat.marks,
                }
                for chat in chats
            ],
        }
        with self._turn:
            try:
                answers = self._ask(json.dumps(asked).encode("ascii") + b"\n")
            except RenderError as error:
                answers = [{"error": str(error)}]
        if len(chats) > 1 and len(answers) < len(chats):
            # One of them took too much time or memory: by themselves, they tell which.
            return [answer for chat in chats for answer in self.render_all([chat])]
        return [a["text"] if "text" in a else RenderError(a["error"]) for a in answers]

    def _ask(self, line: bytes) -> list[dict[str, str]]:
        """What the process answers; it is ended if it takes too long, and begun anew."""
        if self._process is None or self._process.poll() is not None:
            self._process = start()
            if self._exchange(self._process, b"", START_SECONDS) is None:
                raise RendererCrash(f"it did not start within {START_SECONDS} s")
        answer = self._exchange(self._process, line, RENDER_SECONDS)
        if answer is None:
            raise RenderError(f"it did not end within {RENDER_SECONDS} s")
        found: list[dict[str, str]] = json.loads(answer)
        return found

    def _exchange(self, process: Process, line: bytes, seconds: float) -> bytes | None:
        """The next line of the output, after this one of the input; None if it takes too long."""
        assert process.stdin is not None
        assert process.stdout is not None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        answer = b""
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline()
        finally:
            timer.cancel()
            timer.join()
        if answer.endswith(b"\n") and not is_late.is_set():
            return answer
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        self.close()
        if is_late.is_set():
            return None
        raise RendererCrash(show_end(process.returncode))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def show_end(code: int) -> str:
    """How a process ended, in words.

    >>> show_end(1), show_end(-9)
    ('it ended with exit code 1', 'SIGKILL ended it')
    """
    return f"it ended with exit code {code}" if code >= 0 else f"{Signals(-code).name} ended it"


def start() -> Process:
    """The process that renders; Ctrl-C is not for it."""
    return subprocess.Popen(
        [sys.executable, "-P", str(RENDERER), str(math.ceil(RENDER_SECONDS) + 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in VARIABLES if name in os.environ},
        start_new_session=True,
    )


def read_template(path: Path) -> str:
    """The template in a file; CheckpointError if it is too long or not UTF-8."""
    return read_template_file(path)


def find_template(folder: Path) -> ChatTemplate | None:
    """The template of a checkpoint's folder, if it has one; CheckpointError for a bad one."""
    stored = read_chat_template(folder)
    return None if stored is None else ChatTemplate(stored.source, stored.tokens)
