"""`velocity prep` in forks of a process that has all imported and loaded: it starts at once.

Whoever imports this is a process of its own (`python -m tests.servers.full_disk`) without threads:
pytest's may have some.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.servers.killed import arm, import_all, load_tokenizer_once, run_velocity


def warm(tokenizer_json: Path) -> None:
    """Import and load what every run needs; the tokenizer is the same one in all of them."""
    import_all()
    load_tokenizer_once(tokenizer_json)
    pa.array(["Arrow looks for pandas once."])


def start(command: list[str], said: Path | None = None, moment: int | None = None) -> int:
    """Start a command in a fork that leads a process group; what it says goes to a file.

    With a `moment` it kills itself before that one of the calls that change the disk.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        output = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        if moment is not None:
            arm(moment)
        code = run_velocity(command)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child: int) -> int:
    """Wait for a fork; its exit code, negative where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(command: list[str], said: Path) -> tuple[int, list[str]]:
    """A command from its start to its end: its exit code, and the lines that it said."""
    code = finish(start(command, said))
    return code, said.read_text(encoding="utf-8", errors="replace").splitlines()


def list_committed(out: Path) -> dict[str, tuple[int, int]]:
    """Each file that a receipt names, with its inode and time; all are there, and whole.

    Beside the shards of receipts, and of pending ones, nothing else looks like a shard.
    """
    from prep.units.receipts import load_receipt

    committed: dict[str, tuple[int, int]] = {}
    known = set()
    for path in sorted((out / ".prep/units").glob("*.*")):
        if path.suffix not in (".json", ".pending"):
            continue
        receipt = load_receipt(path, int(path.stem))
        names = {name for shard in receipt.shards for name in (shard.name, shard.sidecar)}
        known |= names
        if path.suffix == ".json":
            for shard in receipt.shards:
                assert (out / shard.name).stat().st_size == 2 * shard.num_tokens, shard
            committed |= {name: find_identity(out / name) for name in names}
    found = {path.name for pattern in ("*.bin", "*.docs.parquet") for path in out.glob(pattern)}
    assert found <= known, f"without a receipt: {sorted(found - known)}"
    return committed


def find_identity(path: Path) -> tuple[int, int]:
    """What changes when a file is written again."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def assert_kept(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> None:
    """What was committed is still there, and was not done again."""
    changed: dict[str, Any] = {k: (v, after.get(k)) for k, v in before.items() if after.get(k) != v}
    assert not changed, changed
