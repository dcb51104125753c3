"""Writes the generated parts of README.md: the commands' help, the settings table, the file map.

python docs/fill.py            writes them
python docs/fill.py --check    fails where they are stale
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
ROOMS = ("shards", "prep", "model", "train")
LEAVES = {
    "model": ("model/config.py", "ModelConfig"),
    "training": ("train/config.py", "TrainingConfig"),
    "data": ("shards/config.py", "DataConfig"),
    "tokenizer": ("shards/config.py", "TokenizerConfig"),
    "infrastructure": ("train/config.py", "InfrastructureConfig"),
    "distributed": ("train/config.py", "DistributedConfig"),
}


def make_help() -> str:
    """What `velocity prep --help`, `sample --help` and `shards --help` print."""
    blocks = [f"```\n{show_help(command)}\n```\n" for command in ("prep", "sample", "shards")]
    return "\n".join(blocks).rstrip()


def show_help(command: str) -> str:
    """The help of one command, without the spaces at line ends."""
    process = subprocess.run(
        [sys.executable, "-m", "cli", command, "--help"],
        cwd=ROOT,
        env={"COLUMNS": "100", "TERMINAL_WIDTH": "100", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in process.stdout.strip().splitlines())


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
    return str(value).lower() if isinstance(value, bool) else str(value)


def make_file_map() -> str:
    """Every module with the first line of its docstring."""
    lines = ["```", f"{'cli.py':<24}{first_line(ROOT / 'cli.py')}"]
    for room in ROOMS:
        lines += ["", f"{room + '/':<24}{first_line(ROOT / room / '__init__.py')}"]
        lines += [
            f"  {path.name:<22}{first_line(path)}"
            for path in sorted((ROOT / room).glob("*.py"))
            if path.name != "__init__.py"
        ]
    return "\n".join([*lines, "```"])


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def fill(text: str) -> str:
    """The README with its generated parts made anew."""
    parts = {"help": make_help(), "settings": make_settings(), "files": make_file_map()}
    for name, content in parts.items():
        begin, end = f"<!-- {name}: made by docs/fill.py -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        if not after:
            sys.exit(f"README.md: no {begin} ... {end}")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def main() -> None:
    """Write README.md, or with --check compare it."""
    text = README.read_text(encoding="utf-8")
    filled = fill(text)
    if "--check" in sys.argv:
        sys.exit("README.md is stale; run: python docs/fill.py" if filled != text else 0)
    README.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
