"""SIGKILL in every phase of training: `python -m tests.servers.kill_train REQUEST`.

Each run is a fork of one warm process, or two forks as two ranks, one of which kills itself at a
chosen moment of a chosen phase. The same command follows, killed elsewhere, and so on; at last it
runs to its end, and what it leaves is compared with what a run leaves that nobody killed.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.servers.ports import find_port

# A moment is just before or behind a call of one of these.
CALLS = (
    *(f"os.{name}" for name in ("replace", "rename", "unlink", "mkdir", "fsync", "ftruncate")),
    "shutil.rmtree",
    "train.loop.open_checked_sets",
    "train.loop.build_run",
    "train.loop.take_step",
    "train.take_step.clip_gradients",
    "train.take_step.apply_gradients",
    "train.loop.evaluate",
    "train.run.agree_on_start",
    "train.run.make_optimizer",
    "train.run.warm_up",
    "train.run.restore",
    "train.checkpoints.load.load_files",
    "train.checkpoints.saver.write_files",
    "train.checkpoints.saver.write_tensors",
)
# Its phase is that of the innermost of these functions; outside of all, the run begins or ends.
PHASES = {
    "compile_graph": "compile",
    "prune_checkpoints": "prune",
    "save_checkpoint": "save",
    "evaluate": "evaluate",
    "tidy": "resume",
    "warm_up": "resume",
    "restore": "resume",
    "take_step": "step",
}
# How soon a rank ends after the other one was killed.
SECONDS_TO_END = 60


@dataclass
class Moments:
    """The moments of one process by phase; it dies at number `at` of `phase`."""

    phase: str | None = None
    at: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    def pass_one(self, called: str) -> None:
        """Count a moment, or end there."""
        phase = find_phase(called)
        self.seen[phase] += 1
        if phase == self.phase and self.seen[phase] == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def find_phase(called: str) -> str:
    """What the run is at, from the functions that are being called in this thread."""
    name = called.rpartition(".")[2]
    found = PHASES.get(name)
    frame = sys._getframe(2)
    while found is None and frame is not None:
        found = PHASES.get(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    if found == "save" and name == "rename":
        return "rename"
    return found or "start"


def arm(moments: Moments) -> None:
    """Count the moments of this process from here on."""

    def wrap(call: Callable[..., Any], called: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            moments.pass_one(called)
            result = call(*arguments, **options)
            moments.pass_one(called)
            return result

        return counted

    for called in CALLS:
        owner, _, name = called.rpartition(".")
        module = import_module(owner)
        setattr(module, name, wrap(getattr(module, name), called))
    compile_quickly(moments)


def compile_quickly(moments: Moments) -> None:
    """Compile blocks without a C++ compiler: torch finds the graph, and runs it as it is."""
    from model.transformer import Transformer

    def compile_graph(graph: Any, inputs: Any) -> Any:
        moments.pass_one("compile_graph")
        return graph.forward

    compile_blocks: Any = Transformer.compile_blocks

    def compile_all(model: Any, **options: Any) -> None:
        compile_blocks(model, compile_graph, **options)

    Transformer.compile_blocks = compile_all  # type: ignore[method-assign, assignment]


def start(words: list[str], environment: dict[str, str], moments: Moments, report: int) -> int:
    """Start the training command in a fork; it writes its moments to `report` at its end."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment)
        said = os.open(words_path(words), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        arm(moments)
        code = run_training(words)
        os.write(report, json.dumps(moments.seen).encode())
    finally:
        os._exit(code)


def words_path(words: list[str]) -> str:
    """Where a run's lines go: beside its folder."""
    [folder] = [word for word in words if word.startswith("infrastructure.output_dir=")]
    return folder.partition("=")[2].rstrip("/") + ".txt"


def run_training(words: list[str]) -> int:
    """The command as the user types it; its exit code."""
    from train.__main__ import main

    sys.argv = ["train", *words]
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr, flush=True)
            return 1
        return end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def run(
    words: list[str], num_ranks: int, victim: int = 0, phase: str | None = None, at: int = 0
) -> tuple[int, Counter[str]]:
    """One run of the command: the exit code of rank `victim`, and the moments of the first.

    Raises AssertionError if another rank does not end soon after it.
    """
    reading, writing = os.pipe()
    variables = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    variables |= {"MASTER_PORT": str(find_port()), "OMP_NUM_THREADS": "1"}
    children = {}
    for rank in range(num_ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} | variables if num_ranks > 1 else {}
        moments = Moments(phase if rank == victim else None, at)
        children[rank] = start(words, own, moments, writing if rank == 0 else -1)
    os.close(writing)
    with os.fdopen(reading) as report:
        seen = report.read()
    code = finish(children.pop(victim))
    for other in children.values():
        finish_soon(other)
    return code, Counter(json.loads(seen) if seen else {})


def finish(child: int) -> int:
    """Wait for a fork; its exit code, negative where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish_soon(child: int) -> None:
    """Wait for a rank whose peer has ended."""
    deadline = time.monotonic() + SECONDS_TO_END
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            raise AssertionError("a rank does not end after the other one was killed")
        time.sleep(0.002)


@dataclass
class Killer:
    """Folders, one after the other, and the kills so far by phase."""

    root: Path
    words: list[str]
    num_ranks: int
    random: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0

    def command(self, folder: Path) -> list[str]:
        """The training command in a folder."""
        return [
            *self.words,
            f"infrastructure.output_dir={folder}",
            f"infrastructure.logging_dir={folder / 'logs'}",
        ]

    def run_straight(self) -> tuple[dict[str, Any], Counter[str]]:
        """What a run leaves that nobody kills, and how many moments each phase has."""
        straight, begun = self.root / "straight", self.root / "begun"
        code, seen = run(self.command(straight), self.num_ranks)
        assert code == 0, read_words(straight)
        # A run that goes on has moments that one from scratch has not.
        shutil.copytree(straight, begun)
        [*earlier, newest] = sorted(begun.glob("checkpoint-*"), key=lambda path: len(path.name))
        shutil.rmtree(newest)
        assert earlier
        code, again = run(self.command(begun), self.num_ranks)
        assert code == 0, read_words(begun)
        assert look(begun) == look(straight)
        seen["resume"] = again["resume"]
        return look(straight), seen

    def kill_until(
        self, wanted: dict[str, int], expected: dict[str, Any], seen: Counter[str]
    ) -> None:
        """Kill runs until each phase has been hit as often as is wanted."""
        left = [*Counter(wanted).elements()]
        self.random.shuffle(left)
        while left:
            folder = self.root / f"run-{self.runs}"
            self.runs += 1
            left = self.kill_one_folder(folder, left, seen)
            code, _ = run(self.command(folder), self.num_ranks)
            assert code == 0, read_words(folder)
            assert look(folder) == expected, (folder, look(folder), expected)
            shutil.rmtree(folder)

    def kill_one_folder(self, folder: Path, left: list[str], seen: Counter[str]) -> list[str]:
        """Kill the command in a folder some times; the phases that are left to hit."""
        for _ in range(self.random.randint(2, 6)):
            if not left:
                break
            phase = left[-1]
            if phase == "resume" and not list_whole(folder):
                left = [left[-1], *left[:-1]]  # There is nothing yet to go on from.
                if set(left) == {"resume"}:
                    phase = "evaluate"
                else:
                    continue
            victim = self.random.randrange(self.num_ranks)
            if victim and phase in ("save", "rename", "prune", "compile"):
                victim = 0
            at = self.random.randint(1, max(seen[phase] // 2, 1))
            code, _ = run(self.command(folder), self.num_ranks, victim, phase, at)
            assert code in (0, -signal.SIGKILL), read_words(folder)
            if code == 0:
                break
            check_whole(folder)
            self.kills[phase] += 1
            if phase in left:
                left.remove(phase)
        return left


def list_whole(folder: Path) -> list[Path]:
    """The sealed checkpoints in a folder."""
    from model.checkpoints.seal import list_checkpoints

    return list_checkpoints(folder)


def check_whole(folder: Path) -> None:
    """Every checkpoint that has its name is whole."""
    from model.checkpoints.seal import verify

    for checkpoint in list_whole(folder):
        verify(checkpoint)


def look(folder: Path) -> dict[str, Any]:
    """What a finished run left: the names, the last checkpoint's sha256s, and each logged step."""
    newest = list_whole(folder)[0]
    sealed = json.loads((newest / "checksums.json").read_text())["files"]
    hashes = {name: sealed[name]["sha256"] for name in sealed if name.endswith(".safetensors")}
    state = json.loads((newest / "training_state.json").read_text())
    log = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").open()]
    told = [[record["step"], record.get("loss"), record.get("validation_loss")] for record in log]
    return {"names": [*list_names(folder)], "files": hashes, "state": state, "log": told}


def list_names(folder: Path) -> Iterator[str]:
    """What lies in a run's folder."""
    for path in sorted(folder.iterdir()):
        yield path.name
        if path.is_dir() and path.name != "logs":
            yield from (f"{path.name}/{child.name}" for child in sorted(path.iterdir()))


def read_words(folder: Path) -> str:
    """The last that the runs in a folder said."""
    path = folder.with_name(f"{folder.name}.txt")
    return path.read_text(errors="replace")[-3000:] if path.exists() else "nothing"


def main() -> None:
    """One line of JSON: the kills by phase, and how many folders it took."""
    request = json.loads(sys.argv[1])
    import tests.servers.warm  # noqa: F401

    root = Path(request["folder"])
    killer = Killer(root, request["words"], request["num_ranks"], random.Random(request["seed"]))
    expected, seen = killer.run_straight()
    killer.kill_until(request["wanted"], expected, seen)
    print(json.dumps({"kills": killer.kills, "moments": seen, "runs": killer.runs}))


if __name__ == "__main__":
    main()
