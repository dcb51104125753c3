"""A disk that is full at each moment of a run.

    unshare -rm python -m tests.servers.full_disk REQUEST

In a mount namespace of its own it mounts small disks (tmpfs): with too few inodes, so that the
making of each file and folder fails in turn, and with too few bytes, so that each write does. Then
the disk grows, and the same command goes on. Without the right to mount, a limit on the size of
files (RLIMIT_FSIZE) stands in for the bytes.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.servers.forks import assert_kept, finish, list_committed, run, start, warm
from tests.servers.killed import hash_files

PAGE = 4096


def main() -> None:
    """One line of JSON for each try."""
    request = json.loads(sys.argv[1])
    warm(Path(request["tokenizer"]))
    tries = {"inodes": try_inodes, "bytes": try_bytes, "limit": try_limits}[request["kind"]]
    for found in tries(request):
        print(json.dumps(found), flush=True)


def try_inodes(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One more file each time, until they are enough."""
    for count in range(3, 100):
        found = try_disk(request, f"size=64m,nr_inodes={count}", "nr_inodes=1000")
        yield found | {"limit": count}
        if found["code"] == 0:
            return


def try_bytes(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Some more pages each time, from what the tokenizer needs, until they are enough."""
    tokenizer_bytes = Path(request["tokenizer"]).stat().st_size
    first = -(-tokenizer_bytes // PAGE) * PAGE + 2 * PAGE
    for num_bytes in [PAGE, *range(first, first + 400 * PAGE, request["pages"] * PAGE)]:
        found = try_disk(request, f"size={num_bytes}", "size=64m")
        yield found | {"limit": num_bytes}
        if found["code"] == 0:
            return


def try_disk(request: dict[str, Any], small: str, large: str) -> dict[str, Any]:
    """Run on a small disk, then on with the same disk made larger."""
    disk = Path(request["folder"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", small, "tmpfs", disk], check=True)
    try:
        grow = ["mount", "-o", f"remount,{large}", disk]
        return try_command(request, disk / "shards", None, grow)
    finally:
        subprocess.run(["umount", disk], check=True)


def try_limits(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """No file may be longer than so many bytes; the tokenizer is there before."""
    out = Path(request["folder"]) / "shards"
    for limit in (0, 200, *request["limits"]):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        shutil.copy(request["tokenizer"], out / "tokenizer.json")
        yield try_command(request, out, limit, []) | {"limit": limit}


def try_command(
    request: dict[str, Any], out: Path, limit: int | None, then: list[Any]
) -> dict[str, Any]:
    """A run that fails or not, and the run to the end: what it said, and what is there."""
    command = ["prep", "--out", str(out), *request["command"]]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        code, lines = run_limited(command, said, limit)
        committed = list_committed(out)
        unfinished = [*out.rglob("*.tmp"), *out.glob(".prep/tmp/0*")]
        left = sorted(path.name for path in unfinished)
        if then:
            subprocess.run(then, check=True)
        last_code, last_lines = run(command, said)
    assert last_code == 0, last_lines
    if not request["rewrites"]:
        assert_kept(committed, list_committed(out))
    return {
        "code": code,
        "said": lines,
        "committed": len(committed),
        "left": left,
        "files": hash_files(out),
    }


def run_limited(command: list[str], said: Path, limit: int | None) -> tuple[int, list[str]]:
    """Run with a limit on the size of files; what it says goes through a pipe, which has none."""
    if limit is None:
        return run(command, said)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        os._exit(finish(start(command, Path(f"/dev/fd/{writing}"))) & 0xFF)
    os.close(writing)
    with os.fdopen(reading) as file:
        lines = file.read().splitlines()
    return finish(child), lines


if __name__ == "__main__":
    main()
