"""Writes the generated parts of docs/: help, settings, the map of files, the tables of results.

python docs/fill.py            writes them
python docs/fill.py --check    fails where one is stale, and names the file
"""

import ast
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ROOMS = ("prep", "shards", "model", "train")
LEAVES = {
    "model": ("model/config.py", "ModelConfig"),
    "training": ("train/training_config.py", "TrainingConfig"),
    "data": ("train/config.py", "DataConfig"),
    "tokenizer": ("train/config.py", "TokenizerConfig"),
    "infrastructure": ("train/config.py", "InfrastructureConfig"),
    "distributed": ("train/config.py", "DistributedConfig"),
}


def make_file_map() -> str:
    """Every module with the first line of its docstring, by room."""
    lines = ["```text", f"{'cli.py':<20}{first_line(ROOT / 'cli.py')}", "```"]
    for room in find_rooms():
        lines += ["", f"## {name_of(room)}/", "", describe_room(room), "", "```text"]
        lines += [
            f"{path.name:<20}{first_line(path)}"
            for path in sorted(room.glob("*.py"))
            if path.name != "__init__.py"
        ]
        lines.append("```")
    return "\n".join(lines)


def find_rooms() -> list[Path]:
    """Every folder with a module in it: the rooms and their sub-packages."""
    return sorted(
        {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")},
        key=lambda folder: (ROOMS.index(folder.relative_to(ROOT).parts[0]), folder),
    )


def name_of(path: Path) -> str:
    """A path as the docs spell it."""
    return path.relative_to(ROOT).as_posix()


def describe_room(room: Path) -> str:
    """The first paragraph of a package's docstring, on one line."""
    return " ".join(read_docstring(room / "__init__.py").partition("\n\n")[0].split())


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return read_docstring(path).partition("\n")[0]


def read_docstring(path: Path) -> str:
    """A module's docstring; ends the program where there is none."""
    docstring = path.exists() and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return docstring or sys.exit(f"{name_of(path)}: has no docstring, from which the map is made")


def make_help() -> str:
    """What every command prints for --help."""
    sys.path.insert(0, str(ROOT))  # This checkout's command, whichever is installed.
    from typer.main import get_command

    import cli

    blocks = [
        f"## {' '.join(words)}\n\n```text\n{show_help(words)}\n```"
        for words in find_commands(get_command(cli.app), ["velocity"])
    ]
    blocks.append(f"## torchrun -m train\n\n```text\n{show_train_help()}\n```")
    return "\n\n".join(blocks)


def find_commands(command: Any, words: list[str]) -> Iterator[list[str]]:
    """The words of a command and of every command below it."""
    yield words
    for name, below in getattr(command, "commands", {}).items():
        if below.hidden:
            continue
        yield from find_commands(below, [*words, name])


def show_help(words: list[str]) -> str:
    """The help of one command of `velocity`."""
    from typer.testing import CliRunner

    import cli

    runner = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    result = runner.invoke(cli.app, [*words[1:], "--help"], prog_name="velocity")
    assert result.exit_code == 0, result.output
    return trim(result.stdout)


def show_train_help() -> str:
    """The help of `-m train`."""
    from train.__main__ import parse_arguments

    os.environ["COLUMNS"] = "80"
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        parse_arguments(["--help"])
    return trim(shown.getvalue())


def trim(text: str) -> str:
    """Text without the spaces at its line ends."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def make_settings() -> str:
    """A table of every setting: its default, and the comment at its field."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for section, (path, name) in LEAVES.items():
        lines += [
            f"| `{section}.{key}` | `{default}` | {comment} |"
            for key, default, comment in read_fields(ROOT / path, name)
        ]
    return "\n".join(lines)


def read_fields(path: Path, class_name: str) -> Iterator[tuple[str, str, str]]:
    """Name, default and comment of each field of a dataclass, from its source."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    [definition] = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    ]
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            above = []
            line = node.lineno - 2
            while lines[line].strip().startswith("#"):
                above.insert(0, lines[line].strip().removeprefix("# "))
                line -= 1
            if not above:
                sys.exit(f"{path}: {class_name}.{node.target.id} has no comment above it")
            comment = " ".join(above)
            value = ast.literal_eval(node.value)
            yield node.target.id, format_default(value), comment.replace("|", "\\|")


def format_default(value: object) -> str:
    """A default as YAML spells it."""
    if value is None:
        return "null"
    if value == ():
        return "[]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def make_sizes() -> str:
    """What fits GPUs of the common sizes, for the larger named settings."""
    sys.path.insert(0, str(ROOT))
    from train.plan.sizes import tabulate_sizes
    from train.settings import load_config

    lines: list[str] = []
    for name in ("350m", "1.7b"):
        config = load_config(name)
        header, *rows = tabulate_sizes(config)
        parameters, length = config.model.num_parameters(), config.data.max_seq_length
        lines += ["", f"`{name}`: {parameters:,} parameters, samples of {length:,}", ""]
        lines += [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines[1:])


def make_learning() -> str:
    """What the recipes came to: the tables of benchmarks/results/learn.json."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.learn.table import make_tables

    return make_tables()


# What is made for each page, by the name in its marks.
PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "docs/commands.md": ("help", make_help),
    "docs/settings.md": ("settings", make_settings),
    "docs/map.md": ("files", make_file_map),
    "docs/plan.md": ("sizes", make_sizes),
    "docs/learning.md": ("losses", make_learning),
}


def fill(page: str, text: str) -> str:
    """A page with its generated part made anew."""
    name, make = PARTS[page]
    begin, end = f"<!-- {name}: made by docs/fill.py -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{page}: no {begin} ... {end}")
    return f"{before}{begin}\n{make()}\n{end}{after}"


def main() -> None:
    """Write the pages, or with --check compare them."""
    stale = []
    for page in PARTS:
        text = (ROOT / page).read_text(encoding="utf-8")
        filled = fill(page, text)
        if filled != text:
            stale.append(page)
            if "--check" not in sys.argv:
                (ROOT / page).write_text(filled, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(stale)}; run: python docs/fill.py")


if __name__ == "__main__":
    main()
