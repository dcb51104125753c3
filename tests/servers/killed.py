"""A command that is killed at chosen moments, many times a second.

    python -m tests.servers.killed REQUEST


The modules are imported once; each try is a fork of that process, which has no threads yet. A
child kills itself (SIGKILL) before its n-th call of os.replace, os.unlink, os.rename, os.mkdir,
os.fsync or shutil.rmtree: the calls between which the state of the disk differs.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ((os, "replace"), (os, "unlink"), (os, "rename"), (os, "mkdir"), (os, "fsync"))


def kill_often(
    folder: Path, pristine: Path, command: list[str], num_kills: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Run a `velocity` command on copies of `pristine` in `folder`, killed on the way.

    Each of `num_kills` kills is followed by another one at half of the times, and at last by a run
    to the end. Returns, for each, the ids found behind the kills and the bytes of the result.
    """
    request = {
        "folder": str(folder),
        "pristine": str(pristine),
        "command": command,
        "num_kills": num_kills,
        "seed": seed,
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.servers.killed", json.dumps(request)],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads(line) for line in process.stdout.splitlines()]


def main() -> None:
    """One line of JSON for each try."""
    request = json.loads(sys.argv[1])
    folder, pristine = Path(request["folder"]), Path(request["pristine"])
    import_all()
    load_tokenizer_once(pristine / "tokenizer.json")
    reset(folder, pristine)
    total = count_calls(request["command"])
    generator = random.Random(request["seed"])
    moments = pick_moments(total, request["num_kills"], generator)
    for moment in moments:
        reset(folder, pristine)
        found = [die_at(request["command"], moment, folder)]
        if generator.random() < 0.5:
            found.append(die_at(request["command"], generator.randint(1, total), folder))
        assert run_child(request["command"], None) == 0, "the last run failed"
        print(json.dumps({"moment": moment, "found": found, "files": hash_files(folder)}))


def import_all() -> None:
    """What the commands import, so that a fork has it."""
    import pydantic.type_adapter  # noqa: F401 - by typer, once it reads options

    import cli  # noqa: F401
    import prep.append
    import prep.command
    import prep.gather
    import prep.run_part  # noqa: F401
    import shards.edit.remove
    import shards.inspect.verify  # noqa: F401
    import train.tracing.takedown  # noqa: F401


def load_tokenizer_once(path: Path) -> None:
    """Load what is slow to load, so that a fork has it."""
    from prep.tokenizer.encoder import load_encoder
    from prep.tokenizer.exact import choose_encoder
    from prep.tokenizer.gpt2 import build_gpt2_json

    load_encoder(path, choose_encoder(None, build_gpt2_json()).encoder)


def reset(folder: Path, pristine: Path) -> None:
    """Begin with the set as it was."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine, folder)


def pick_moments(total: int, count: int, generator: random.Random) -> list[int]:
    """`count` moments from 1 to `total`, all of them where there are no more."""
    assert total > 5
    return sorted(generator.sample(range(1, total + 1), min(count, total)))


def count_calls(command: list[str]) -> int:
    """How many moments the command has."""
    reading, writing = os.pipe()
    assert run_child(command, None, writing) == 0
    os.close(writing)
    with os.fdopen(reading) as file:
        return int(file.read())


def die_at(command: list[str], moment: int, folder: Path) -> str | None:
    """Run the command up to a moment; the dataset_id of the set that is then there, whole."""
    status = run_child(command, moment)
    assert status in (0, -signal.SIGKILL), status
    return find_whole_set(folder)


def run_child(command: list[str], moment: int | None, report: int | None = None) -> int:
    """Run the command in a fork; its exit code, negative where it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        calls = arm(moment)
        silence()
        code = run_velocity(command)
        if report is not None:
            os.write(report, str(len(calls)).encode())
    finally:
        os._exit(code)


def run_velocity(command: list[str]) -> int:
    """The command as the user types it."""
    from cli import main as velocity

    sys.argv = ["velocity", *command]
    try:
        velocity()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return int(bool(error.code))
    return 0


def silence() -> None:
    """Say nothing on standard output, which is this module's."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def arm(moment: int | None) -> list[int]:
    """Kill this process before the call number `moment`; the list grows with each call."""
    calls: list[int] = []

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    for module, name in CALLS:
        setattr(module, name, wrap(getattr(module, name)))
    return calls


def find_whole_set(folder: Path) -> str | None:
    """The dataset_id of the set in `folder`, all of whose files have their sizes; None: no set."""
    from shards.disk.layout import MANIFEST
    from shards.format import read_manifest

    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        assert (folder / shard.name).stat().st_size == 2 * shard.num_tokens, shard
        assert (folder / shard.sidecar).is_file(), shard
    return manifest.dataset_id


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file, but for prep's own and the manifests, which tell the time."""
    from shards.disk.durable import hash_file

    return {
        path.name: hash_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "manifest.json"
    }


if __name__ == "__main__":
    main()
