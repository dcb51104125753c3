"""SIGKILL at random moments: `python -m tests.servers.kill_prep REQUEST`.

Runs of `velocity prep` are forks of one warm process, killed after a random time (`local`, one
process; `pool`, three workers, of which single ones are killed or all with their parent; `parts`,
three parts at once and --finish) and begun again until the set is there; then in a new folder,
until there were enough kills. After each: what was committed is there, and nothing else is.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.servers.forks import assert_kept, finish, list_committed, start, warm
from tests.servers.killed import count_calls, hash_files, run_child

# Of the parts of one set; without an end to it they might never come to theirs.
KILLS_OF_A_SET = 20


class Killer:
    """One folder after the other, and the kills so far."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.out = Path(request["folder"])
        self.options: list[str] = request["command"]
        self.expected: dict[str, str] = request["expected"]
        self.random = random.Random(request["seed"])
        self.kills = 0
        self.sets = 0
        # What the disk showed behind the kills.
        self.moments: Counter[str] = Counter()
        self.committed: dict[str, tuple[int, int]] = {}

    def command(self, *more: str) -> list[str]:
        """The command as a user types it."""
        return ["prep", "--out", str(self.out), *self.options, *more]

    def look(self) -> None:
        """Note and check what a kill left."""
        self.kills += 1
        self.moments[find_moment(self.out)] += 1
        committed = list_committed(self.out)
        assert_kept(self.committed, committed)
        self.committed = committed

    def complete(self) -> None:
        """A set is there: it is the right one, and none of it was done twice."""
        assert hash_files(self.out) == self.expected
        assert_kept(self.committed, list_committed(self.out))
        assert list((self.out / ".prep/tmp").iterdir()) == []
        shutil.rmtree(self.out)
        self.committed = {}
        self.sets += 1


def find_moment(out: Path) -> str:
    """What a run was at when it was killed, from what it left."""
    if (out / "manifest.json").exists():
        return "behind the manifest"
    if (out / "manifest.json.tmp").exists():
        return "manifest"
    if not (out / ".prep/plan.json").exists():
        return "plan"
    units = out / ".prep/units"
    if any(units.glob("*.pending")):
        return "commit"
    if any(path.is_dir() for path in (out / ".prep/tmp").iterdir()):
        return "encode"
    num_units = len(json.loads((out / ".prep/plan.json").read_text())["content"]["units"])
    return "finish" if len(list(units.glob("*.json"))) == num_units else "between units"


def kill_local(killer: Killer, num_kills: int) -> None:
    """One process, killed by the clock, or itself before a call that changes the disk."""
    seconds = measure(killer)
    num_calls = count_calls(killer.command("--workers", "1"))
    killer.complete()
    killer.sets = 0
    while killer.kills < num_kills:
        if killer.random.random() < 0.5:
            code = run_child(killer.command("--workers", "1"), killer.random.randint(1, num_calls))
        else:
            child = start(killer.command("--workers", "1"))
            time.sleep(killer.random.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            code = finish(child)
        end_or_look(killer, code)


def end_or_look(killer: Killer, code: int) -> None:
    """Behind a run that was killed, or that came to its end before."""
    assert code in (0, -signal.SIGKILL), code
    if code == 0:
        killer.complete()
    elif (killer.out / ".prep/units").is_dir():
        killer.look()
    else:
        killer.kills += 1


def measure(killer: Killer) -> float:
    """How long a run takes that nobody kills."""
    started = time.monotonic()
    assert finish(start(killer.command("--workers", "1"))) == 0
    seconds = time.monotonic() - started
    killer.complete()
    killer.sets = 0
    return seconds


def kill_pool(killer: Killer, num_kills: int) -> None:
    """Three workers: most kills hit one of them, and the run goes on; some hit all at once."""
    # Forked workers start at once, where spawned ones load everything first.
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get_context("fork")  # type: ignore
    seconds = measure(killer)
    while killer.kills < num_kills:
        parent = start(killer.command("--workers", "3"))
        # Two single workers at most: a unit that loses three is given up.
        for _ in range(2):
            time.sleep(killer.random.uniform(0, seconds / 3))
            killer.kills += kill_one(killer.random, find_children(parent))
        if killer.random.random() < 0.5:
            with suppress(ProcessLookupError):
                os.killpg(parent, signal.SIGKILL)
        end_or_look(killer, finish(parent))


def kill_one(generator: random.Random, processes: list[int]) -> int:
    """Kill one of the processes, if there are any; how many were killed."""
    if not processes:
        return 0
    victim = generator.choice(processes)
    with suppress(OSError):
        is_dead = Path(f"/proc/{victim}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        os.kill(victim, signal.SIGKILL)
        return int(not is_dead)
    return 0


def find_children(parent: int) -> list[int]:
    """The processes that a process has started and that live."""
    with suppress(OSError):
        return [*map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]
    return []


def kill_parts(killer: Killer, num_kills: int) -> None:
    """Three parts at once, each begun again when it was killed; and --finish, killed as well."""
    seconds = measure(killer)
    while killer.kills < num_kills:
        running = {part: start_part(killer, part) for part in range(3)}
        before = killer.kills
        while running:
            may_kill = killer.kills < before + KILLS_OF_A_SET
            part = killer.random.choice([*running])
            if may_kill:
                time.sleep(killer.random.uniform(0, seconds / 2))
                os.kill(running[part], signal.SIGKILL)
            code = finish(running.pop(part))
            assert code in (0, -signal.SIGKILL), code
            if code != 0:
                look_while_stopped(killer, [*running.values()])
                running[part] = start_part(killer, part, may_kill)
        moment = 1  # Of --finish each call that changes the disk, one after the other.
        while (code := run_child(finish_command(killer), moment)) != 0:
            end_or_look(killer, code)
            moment += 1
        killer.complete()


def start_part(killer: Killer, part: int, may_die: bool = True) -> int:
    """A process that does one part, and most of the times kills itself if it may."""
    dies = may_die and killer.random.random() < 0.7
    moment = killer.random.randint(1, 30) if dies else None
    return start(killer.command("--workers", "1", "--part", f"{part}/3"), moment=moment)


def finish_command(killer: Killer) -> list[str]:
    """What makes the parts' work one set."""
    return ["prep", "--out", str(killer.out), "--finish"]


def look_while_stopped(killer: Killer, others: list[int]) -> None:
    """Look behind a kill while the other parts hold still."""
    for process in others:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
    for process in others:
        os.waitid(os.P_PID, process, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    end_or_look(killer, -signal.SIGKILL)
    for process in others:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def main() -> None:
    """One line of JSON: the kills, the sets that came of it, and what the kills hit."""
    request = json.loads(sys.argv[1])
    warm(Path(request["tokenizer"]))
    killer = Killer(request)
    kill = {"local": kill_local, "pool": kill_pool, "parts": kill_parts}[request["engine"]]
    kill(killer, request["num_kills"])
    found = {"kills": killer.kills, "sets": killer.sets, "moments": killer.moments}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
