"""`velocity sample` on a terminal: prompts and commands, one after another."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints.folder import save_model
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.sample.repl import Console, Repl, list_options
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model, make_tokenizer

ROOT = Path(__file__).parents[2]
SECONDS = 120
# Makes the terminal this process's own, so that Ctrl-C typed there reaches it.
OWNING = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Terminal:
    """A command on a pseudo-terminal: what is typed into it, and what it shows."""

    def __init__(self, *words: str, state: Path) -> None:
        self.end, terminal = pty.openpty()
        environment = os.environ | {"XDG_STATE_HOME": str(state), "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNING, "-m", "cli", *words],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=ROOT,
            env=environment,
        )
        os.close(terminal)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self.end, keys.encode())

    def await_text(self, pattern: str, keys: str = "") -> str:
        """All that is shown until the pattern is, which is then forgotten.

        `keys` are typed whenever nothing comes: CPython misses a signal just before it waits.
        """
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            assert time.monotonic() < deadline, f"waited for {pattern!r}, got {self.shown!r}"
            if select.select([self.end], [], [], 1.0)[0]:
                self.shown += os.read(self.end, 4096).decode("utf-8", "replace")
            else:
                self.type(keys)
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.end)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has room for a text that takes minutes."""
    path = tmp_path_factory.mktemp("run") / "long"
    save_model(path, make_model(replace(CONFIG, max_position_embeddings=20_000)), TOKENIZER_JSON)
    return path


@pytest.fixture
def terminal(folder: Path, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal("sample", "--ckpt", str(folder), "--seed", "3", state=tmp_path)
    yield opened
    opened.close()


def test_a_terminal_asks_for_prompts(terminal: Terminal, tmp_path: Path) -> None:
    terminal.await_text("/help lists commands.*> ")
    terminal.type("/max-new-tokens 5\n/temperature 0\nThe quick\n")
    shown = terminal.await_text("The quick\r\n(The quick[^\r]*)\r\n> ")
    (own,) = Generator(make_model(), make_tokenizer()).generate(
        "The quick", max_new_tokens=5, temperature=0
    )
    assert f"\r\n{own}\r\n" in shown

    terminal.type("/temperature 50\n/top-k 0\n/top-p 1\n/max-new-tokens 15000\n")
    terminal.type("/min-new-tokens 15000\nA\n")
    written = terminal.await_text(r"\r\nA.{300}")  # Drawn at random, so of control characters too.
    terminal.type("\x03")
    written += terminal.await_text("velocity: stopped\r\n> ")
    assert re.search(r"\\x[01][0-9a-f]", written)
    assert not re.search(r"[\x00-\x08\x0e-\x1f]", written)

    terminal.type("half a line")
    terminal.await_text("half a line")
    terminal.await_text("\r\n> ", keys="\x03")
    terminal.type("/nonsense\n")
    terminal.await_text("/nonsense is no command; /help lists them")
    terminal.type("\x04")
    assert terminal.process.wait(SECONDS) == 0
    history = (tmp_path / "velocity" / "sample-history").read_text()
    assert "/temperature 50\n" in history
    assert "The quick\n" in history


def read_or_raise(line: Any) -> str:
    if isinstance(line, str):
        return line
    raise line


def converse(*lines: str | type[BaseException]) -> tuple[str, list[str], Repl]:
    """What is shown and said to these lines; an exception is raised where it is to be read."""
    shown, told, left = list[str](), list[str](), iter(lines)

    def read(_: str) -> str:
        line = next(left, EOFError)
        if not isinstance(line, str):
            raise line
        return line

    generator = Generator(make_model(), make_tokenizer())
    console = Console(shown.append, told.append, read)
    repl = Repl(generator, Settings(max_new_tokens=4, seed=1), console)
    repl.run()
    return "".join(shown), told[1:], repl


def test_commands_change_settings() -> None:
    _, told, repl = converse(
        "/temperature 0.5", "/num-samples 2", "/stop \\n\\n", "/stop User:", "/top-k", "/seed 7"
    )
    assert told == []
    assert repl.settings == replace(
        repl.start, temperature=0.5, num_return_sequences=2, stop=("\n\n", "User:"), seed=7
    )
    _, told, repl = converse("/stop a", "/stop", "/temperature 0.5", "/reset")
    assert (told, repl.settings) == ([], repl.start)


def test_every_setting_of_the_command_line_has_a_command() -> None:
    shown, _, _ = converse("/help", "/settings")
    for name in list_options():
        assert shown.count(f"{name} ") == 2
    assert {"/min-p", "/repetition-penalty", "/num-beams", "/bad-words"} <= set(list_options())
    assert "\n/temperature           0.8\n" in shown


def test_what_is_wrong_is_said_and_changes_nothing() -> None:
    _, told, repl = converse("/top-p 7", "/max-new-tokens x", "/seeed 1", "!" * 500)
    assert repl.settings == repl.start
    assert told[0] == "velocity: top_p is 7.0; expected a number above 0 and at most 1; 1 is off"
    assert told[1] == "velocity: max_new_tokens is 'x'; expected a whole number"
    assert told[2] == "velocity: /seeed is no command; /help lists them"
    assert "the model's context is 128" in told[3]


def test_prompts_of_several_lines_and_with_a_slash() -> None:
    shown, _, _ = converse('"""', "one", "two", '"""', "//quit", "/quit", "never")
    assert shown.startswith("one\ntwo")
    assert "\n/quit" in shown
    assert "never" not in shown


def test_more_goes_on_with_the_last_text() -> None:
    shown, _, _ = converse("/temperature 0", "The quick", "/more")
    (whole,) = Generator(make_model(), make_tokenizer()).generate(
        "The quick", temperature=0, max_new_tokens=4
    )
    assert shown.count(whole) == 2


def test_more_goes_on_with_each_of_several_texts() -> None:
    shown, told, repl = converse("/temperature 0", "/num-samples 2", "The quick", "/more")
    options = {"temperature": 0, "max_new_tokens": 4}
    generator = Generator(make_model(), make_tokenizer())
    (once,) = generator.generate("The quick", **options)
    (twice,) = generator.generate(once, **options)
    assert shown.count(f" ---\n{once}\n--- ") == 2
    assert shown.count(f" ---\n{twice}\n--- prompt 2, sample 1: ") == 1
    assert shown.endswith(f" ---\n{twice}\n\n")
    assert (told, repl.settings.num_return_sequences) == ([], 2)


def test_more_needs_a_text_and_keeps_the_last_one_where_a_prompt_fails() -> None:
    shown, told, _ = converse("/more")
    assert (shown, told) == (
        "\n",
        ["velocity: there is no text to go on with; type how one begins"],
    )
    shown, told, _ = converse("/temperature 0", "The quick", "!" * 500, "/more")
    (whole,) = Generator(make_model(), make_tokenizer()).generate(
        "The quick", temperature=0, max_new_tokens=4
    )
    assert len(told) == 1
    assert shown.count(whole) == 2


def test_more_goes_on_behind_a_line_end_where_a_text_was_stopped() -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    _, _, repl = converse()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.decode.generator.Batch.step", stop)
        lines = iter(["one\n", EOFError])
        repl.read = lambda _: read_or_raise(next(lines))
        repl.run()
    assert [draft.text for draft in repl.last] == ["one\n"]


@pytest.mark.parametrize("kind", ["show", "say", "read"])
@pytest.mark.parametrize("moment", range(4))
def test_ctrl_c_ends_the_program_at_no_moment(kind: str, moment: int) -> None:
    """Whatever is being shown, said or read when it comes, the next line is answered."""
    lines = iter(["/top-p 7", "one", KeyboardInterrupt, "/seed 9", EOFError])
    shown = list[str]()
    calls: dict[str, Any] = {
        "show": shown.append,
        "say": shown.append,
        "read": lambda _: read_or_raise(next(lines)),
    }
    whole, passed = calls[kind], iter(range(100))

    def interrupted(text: str) -> Any:
        if next(passed) == moment + (kind == "say"):  # But for the greeting, which comes first.
            raise KeyboardInterrupt
        return whole(text)

    generator = Generator(make_model(), make_tokenizer())
    console = Console(**calls | {kind: interrupted})
    repl = Repl(generator, Settings(max_new_tokens=2, temperature=0), console)
    repl.run()
    assert repl.settings.seed == 9


def test_bytes_that_are_no_text_are_told_and_dropped() -> None:
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    lines = iter([error, "/seed 2", EOFError])
    _, _, repl = converse()
    told = list[str]()
    repl.read, repl.say = lambda _: read_or_raise(next(lines)), told.append
    repl.run()
    assert told[1:] == ["velocity: what was typed is not utf-8; nothing was done"]
    assert repl.settings.seed == 2


def test_escapes_mean_the_same_as_in_the_options() -> None:
    typed = r"a\nb\tc\\d"
    _, _, repl = converse(f"/stop {typed}", f"/bad-words {typed}")
    settings = Settings(stop=typed, bad_words=[typed]).read_escapes()
    assert (repl.settings.stop, repl.settings.bad_words) == (settings.stop, settings.bad_words)
    assert settings.stops == settings.words == ("a\nb\tc\\d",)


def test_a_text_that_is_not_streamed_appears_at_once() -> None:
    shown, lines = list[str](), iter(["one"])

    def read(_: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    generator = Generator(make_model(), make_tokenizer())
    settings = Settings(max_new_tokens=9, temperature=0)
    Repl(generator, settings, Console(shown.append, shown.append, read, streams=False)).run()
    (whole,) = generator.generate("one", max_new_tokens=9, temperature=0)
    assert shown[1:] == [whole + "\n", "\n"]


def test_an_interrupted_line_is_dropped() -> None:
    shown, told, _ = converse(KeyboardInterrupt, "/quit")
    assert (shown, told) == ("\n", [])
