"""A prompt after another, typed on a terminal, with settings that are changed on the way."""

import contextlib
import os
import typing
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from typer.models import OptionInfo

from model.decode.draft import Draft
from model.decode.generator import Generator
from model.decode.settings import Settings, list_words, read_typed
from model.sample.console import Show, write_drafts

HISTORY_LINES = 1000
MARK, BLOCK_MARK, BLOCK = "> ", ". ", '"""'
GREETING = (
    "velocity: type how a text begins; /help lists commands, Ctrl-C stops a text, Ctrl-D ends"
)
COMMANDS = {
    "/settings": "Show all settings.",
    "/reset": "Set all settings as they were at the start.",
    "/more": "Go on with the last text, or with each of the last ones.",
}
HELP = {
    "/help": "Show this.",
    "/quit": "End, as Ctrl-D does.",
    BLOCK: "Alone on a line: begin, and end, a prompt of several lines.",
    "//": "A prompt that begins with a slash: only the first one is left out.",
}


@dataclass(frozen=True)
class Option:
    """A setting that may be changed by a command."""

    field: str
    help: str
    kind: type  # int, float or str.
    takes_several: bool


def list_options(hidden: Collection[str] = ()) -> dict[str, Option]:
    """The settings by the commands that change them; their names are those of the options.

    Those of the fields that are `hidden` have none.
    """
    hints = typing.get_type_hints(Settings, include_extras=True)
    options = {}
    for field in fields(Settings):
        wanted, *extras = typing.get_args(hints[field.name]) or (None,)
        for extra in extras:
            if isinstance(extra, OptionInfo) and field.name not in {"logprobs", *hidden}:
                names = [str(name) for name in (extra.default, *(extra.param_decls or ()))]
                given = [name for name in names if name.startswith("--")]
                name = given[0] if given else f"--{field.name.replace('_', '-')}"
                members = typing.get_args(wanted) or (wanted,)
                kind = next(member for member in members if member in (int, float, str))
                takes_several = any(typing.get_origin(member) for member in members)
                options[f"/{name.lstrip('-')}"] = Option(
                    field.name, extra.help or "", kind, takes_several
                )
    return options


@dataclass(frozen=True)
class Console:
    """Where a person types, and reads what is written."""

    # For texts, and for all else.
    show: Show
    say: Show
    # A line behind the mark that it is given; EOFError at the end.
    read: Callable[[str], str] = input
    # Whether texts are shown as they are written, or whole.
    streams: bool = True


class Repl:
    """Reads prompts and commands from a terminal until its end."""

    greeting = GREETING
    # What its commands do, but for those that change a setting.
    commands: Mapping[str, str] = COMMANDS
    # Fields of the settings that no command changes.
    hidden: Collection[str] = ()

    def __init__(self, generator: Generator, settings: Settings, console: Console) -> None:
        self.generator = generator
        self.start = self.settings = settings
        self.show, self.say, self.read = console.show, console.say, console.read
        self.streams = console.streams
        self.options = list_options(self.hidden)
        self.last: Sequence[Draft] = ()  # What was written last, perhaps not to its end.

    def run(self) -> None:
        """Answer until the end of the input, or /quit."""
        self.say(self.greeting)
        pending = deque[Callable[[], None]]()  # What is still to be told about the last line.
        is_writing = False
        while True:
            try:  # Nothing is done outside of it, as Ctrl-C may come at any time.
                while pending:
                    pending[0]()
                    pending.popleft()
                is_writing = False
                line = self._read_prompt()
                is_writing = True
                if line.strip() in ("/quit", "/exit"):
                    return
                self._answer(line)
            except EOFError:
                self.show("\n")
                return
            except ValueError as error:
                pending.append(partial(self.say, f"velocity: {error}"))
            except KeyboardInterrupt:  # A line that was being typed is dropped.
                pending.append(partial(self.show, "\n"))
                if is_writing:
                    pending.append(partial(self.say, "velocity: stopped"))

    def _read_prompt(self) -> str:
        """A line, or the lines between two marks of a block."""
        line = self._read_line(MARK)
        if line.strip() != BLOCK:
            return line
        lines = list[str]()
        while (line := self._read_line(BLOCK_MARK)).strip() != BLOCK:
            lines.append(line)
        return "\n".join(lines)

    def _read_line(self, mark: str) -> str:
        try:
            return self.read(mark)
        except UnicodeDecodeError as error:
            raise ValueError(f"what was typed is not {error.encoding}; nothing was done") from None

    def _answer(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            self._obey(*line.strip().partition(" ")[::2])
        else:
            self._take(line.removeprefix("/") if line.startswith("//") else line)

    def _take(self, text: str) -> None:
        """Answer what was typed and is no command."""
        self._write([text], self.settings)

    def _write(self, prompts: Sequence[str], settings: Settings) -> None:
        """Write texts, with which /more goes on, even where they were stopped."""
        self.last = self.generator.start(prompts, settings)
        write_drafts(self.generator, self.last, self.show, self.say, self.streams)

    def _write_more(self) -> None:
        """Go on with each of the last texts."""
        if not self.last:
            raise ValueError("there is no text to go on with; type how one begins")
        texts = [draft.text for draft in self.last]
        self._write(texts, replace(self.settings, num_return_sequences=1))

    def _obey(self, command: str, value: str) -> None:
        if command == "/help":
            texts = {f"{name} X": option.help for name, option in self.options.items()}
            self._show_table({**texts, **self.commands, **HELP})
        elif command in self.options:
            self._change(self.options[command], value.strip())
        elif not self._run(command, value.strip()):
            self.say(f"velocity: {command} is no command; /help lists them")

    def _run(self, command: str, value: str) -> bool:
        """Do what one of `commands` says; whether it is one."""
        if command == "/settings":
            self._show_settings()
        elif command == "/reset":
            self.settings = self.start
        elif command == "/more":
            self._write_more()
        return command in self.commands

    def _change(self, option: Option, value: str) -> None:
        """Give a setting the typed value, or without one its default."""
        new: Any = getattr(Settings, option.field)
        if value and option.takes_several:
            new = (*list_words(getattr(self.settings, option.field)), read_typed(value))
        elif value:
            try:
                new = option.kind(value)
            except ValueError:
                kind = "a whole number" if option.kind is int else "a number"
                raise ValueError(f"{option.field} is {value!r}; expected {kind}") from None
        self.settings = replace(self.settings, **{option.field: new})

    def _show_settings(self) -> None:
        values = {name: getattr(self.settings, o.field) for name, o in self.options.items()}
        self._show_table({name: repr(value) for name, value in values.items()})

    def _show_table(self, rows: Mapping[str, str]) -> None:
        width = max(map(len, rows))
        for name, text in rows.items():
            self.show(f"{name.ljust(width)}  {text}\n")


def run_repl(repl: Repl, name: str) -> None:
    """Run it on the terminal, with editing and the lines of before where Python has readline.

    They are kept under the `name` of the command.
    """
    with kept_history(find_history(os.environ, Path.home(), name)):
        repl.run()


def find_history(environment: Mapping[str, str], home: Path, name: str) -> Path:
    """Where the lines that were typed are kept, as the XDG base directories say.

    >>> str(find_history({}, Path("/home/me"), "sample"))
    '/home/me/.local/state/velocity/sample-history'
    """
    state = environment.get("XDG_STATE_HOME") or home / ".local" / "state"
    return Path(state) / "velocity" / f"{name}-history"


@contextlib.contextmanager
def kept_history(path: Path) -> Iterator[None]:
    """Give `input` the lines of before, and keep those typed inside, if the disk takes them."""
    try:
        import readline
    except ImportError:  # Windows.
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(HISTORY_LINES)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)
