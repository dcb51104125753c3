"""Watches over the ranks of a run: whether all live, whether one failed, whether they get on.

A rank tells by a note that it failed (train/ranks/alarm.py). One that was killed cannot: its end is
seen at once on its machine, and elsewhere by its signs of life, which stop. Where nothing has moved
for too long, all ranks are asked where they are, and the answers end the run.
"""

import json
import os
import platform
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from torch._C import _distributed_c10d as c10d
from torch._C._distributed_c10d import Store

from shards.disk.durable import write_file
from shards.screen.lines import say
from train.ranks.alarm import Note, call_within
from train.ranks.ending import Ending
from train.ranks.exits import FAILED, leave
from train.ranks.place import Place, describe_places, find_line

ASKED = "asked"
# How long the last rank to leave waits for the others.
LEAVING_SECONDS = 30.0


@dataclass(frozen=True)
class Limits:
    """How many seconds ranks wait for each other, and how often they look."""

    # While they start, compile or save; and for everything else.
    start: float
    step: float
    poll: float = 0.5
    # How long a rank on another machine, or that with the store, may give no sign of life.
    silence: float = 60.0
    # How long a store that refuses connections may do so.
    refusal: float = 5.0
    # How long the ranks have to say where they are.
    answer: float = 5.0


class Watch:
    """Two threads of one rank: one talks to the store, one sees that the store still answers."""

    def __init__(
        self,
        ending: Ending,
        store: Store,
        rank: int,
        world_size: int,
        place: Place,
        limits: Limits,
        log_folder: Path | None,
    ) -> None:
        self.ending = ending
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.place = place
        self.limits = limits
        self.log_folder = log_folder
        self.is_over = Event()
        self.rounds = 0
        # The next rank's last sign of life, and for how many rounds it has not changed.
        self.sign, self.quiet_rounds = b"", 0
        # The same of this rank's place.
        self.moves, self.still_rounds = -1, 0
        self.has_answered = False
        self.hosts: list[str] = []
        # The processes on this machine: the rank of each descriptor.
        self.processes: dict[int, int] = {}
        self.threads = [
            Thread(target=self.keep_in_touch, name="ranks", daemon=True),
            Thread(target=self.look_around, name="neighbours", daemon=True),
        ]

    def start(self) -> None:
        """Say who this is, learn who the others are, and begin."""
        own = {"machine": identify_machine(), "host": platform.node(), "pid": os.getpid()}
        # There from the first, so that who asks for it need not wait for a rank that is gone.
        self.store.set(f"sign/{self.rank}", "")
        self.store.set(f"process/{self.rank}", json.dumps(own))
        names = [f"process/{rank}" for rank in range(self.world_size)]
        for rank, text in enumerate(self.store.multi_get(names)):
            process = json.loads(text)
            self.hosts.append(process["host"])
            if rank != self.rank and own["machine"] and process["machine"] == own["machine"]:
                with suppress(OSError):  # It has ended already, or the kernel does not do this.
                    self.processes[os.pidfd_open(process["pid"])] = rank
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the watch of a run that is done; the first rank, which may hold the store, last."""
        with suppress(Exception):
            self.store.set(f"left/{self.rank}", "")
        if self.rank == 0:
            names = [f"left/{rank}" for rank in range(self.world_size)]
            deadline = time.monotonic() + LEAVING_SECONDS
            while not call_within(1.0, lambda: self.store.check(names)):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        self.is_over.set()
        for thread in self.threads:
            thread.join(LEAVING_SECONDS)
        for descriptor in self.processes:
            os.close(descriptor)

    def find_silent(self, seconds: float) -> list[int]:
        """The ranks that give no sign of life for some seconds."""
        names = [f"sign/{rank}" for rank in range(self.world_size)]
        before = call_within(seconds, lambda: self.store.multi_get(names))
        time.sleep(seconds)
        after = call_within(seconds, lambda: self.store.multi_get(names))
        if before is None or after is None:
            return []
        return [rank for rank in range(self.world_size) if before[rank] == after[rank]]

    def keep_in_touch(self) -> None:
        """Talk to the store, round after round."""
        refused = 0.0
        while not self.is_over.wait(self.limits.poll):
            try:
                self.take_round()
                refused = 0.0
            except Exception:
                refused += self.limits.poll
                if refused > self.limits.refusal and not self.is_over.is_set():
                    self.give_up()
            self.rounds += 1

    def take_round(self) -> None:
        """Look for a note, give a sign, look for the next rank's, answer, and look at the time."""
        assert self.ending.alarm is not None
        note = self.ending.alarm.read()
        if note and note.teller != self.rank:
            self.ending.follow(note)
        self.store.set(f"sign/{self.rank}", str(self.rounds))
        self.check_next_rank()
        if self.store.check([ASKED]) and not self.has_answered:
            self.answer()
        self.check_progress()

    def check_next_rank(self) -> None:
        """See whether the next rank, by number, gives signs of life."""
        other = (self.rank + 1) % self.world_size
        sign = self.store.get(f"sign/{other}")
        # Rounds are counted and not seconds, which also pass while this machine is suspended.
        self.quiet_rounds = self.quiet_rounds + 1 if sign == self.sign else 0
        self.sign = sign
        seconds = self.quiet_rounds * self.limits.poll
        if seconds < self.limits.silence or self.store.check([f"left/{other}"]):
            return
        reason = f"gave no sign of life for {seconds:.0f} s: killed, or its machine is gone"
        self.end_for(other, reason)

    def check_progress(self) -> None:
        """See whether this rank gets on; ask all ranks where they are if it does not."""
        moves, is_long = self.place.moves, self.place.is_long
        self.still_rounds = self.still_rounds + 1 if moves == self.moves else 0
        self.moves = moves
        limit = self.limits.start if is_long else self.limits.step
        if is_long is None or self.still_rounds * self.limits.poll < limit:
            return
        self.still_rounds = 0
        if self.store.compare_set(ASKED, "", str(self.rank)) == str(self.rank).encode():
            self.report(limit)

    def answer(self) -> None:
        """Say where this rank is, and write down its last collectives."""
        self.has_answered = True
        self.store.set(f"place/{self.rank}", f"{self.place.what} at {find_line()}")
        # The log's file system may be what hangs.
        call_within(self.limits.answer, self.write_recorder)

    def write_recorder(self) -> None:
        """Write this rank's last collectives into the log folder."""
        if self.log_folder:
            self.log_folder.mkdir(parents=True, exist_ok=True)
            write_file(self.log_folder / f"stuck-rank-{self.rank}.json", read_recorder())

    def report(self, limit: float) -> None:
        """Collect where the ranks are, and end the run with that."""
        self.answer()
        names = [f"place/{rank}" for rank in range(self.world_size)]
        deadline = time.monotonic() + self.limits.answer
        while not self.store.check(names) and time.monotonic() < deadline:
            time.sleep(0.05)
        places = [self.store.get(n).decode() if self.store.check([n]) else None for n in names]
        where = f"; their last collectives: {self.log_folder}/stuck-rank-*.json"
        self.ending.end(
            self.ending.make_note(
                f"nothing has moved for {limit:.0f} s: {describe_places(places)}"
                f"{where if self.log_folder else ''}",
                FAILED,
            )
        )

    def look_around(self) -> None:
        """See processes of this machine end, and whether the store still answers."""
        quiet, rounds = 0, 0
        # No select: a process with many connections has descriptors above its limit of 1,024.
        poll = select.poll()
        for descriptor in self.processes:
            poll.register(descriptor, select.POLLIN)
        while not self.is_over.is_set():
            ready = poll.poll(self.limits.poll * 1000)
            if self.is_over.is_set():
                return
            for descriptor, _ in ready:
                rank = self.processes.pop(descriptor)
                poll.unregister(descriptor)
                os.close(descriptor)
                if not self.has_left(rank):
                    self.end_for(rank, "ended without a word: killed, perhaps for want of memory")
            quiet, rounds = (quiet + 1 if rounds == self.rounds and not ready else 0), self.rounds
            if quiet * self.limits.poll > self.limits.silence:
                self.give_up()

    def has_left(self, rank: int) -> bool:
        """Whether a rank was done when it ended."""
        return bool(call_within(1.0, lambda: self.store.check([f"left/{rank}"])))

    def end_for(self, rank: int, reason: str) -> None:
        """End the run because of a rank that cannot tell."""
        note = self.ending.make_note(reason, FAILED, rank)
        self.ending.end(Note(**vars(note) | {"host": self.hosts[rank]}))

    def give_up(self) -> None:
        """End because the store does not answer, so that nothing can be learnt or told any more."""
        self.ending.take_over()
        # On its machine, the first rank may be what has ended.
        speakers = ("0", "1") if self.hosts[0] == platform.node() else ("0",)
        if os.environ.get("LOCAL_RANK") in speakers:
            say(
                f"velocity: rank {self.rank} ({platform.node()}): rank 0 ({self.hosts[0]}), or the "
                "torchrun that holds the ranks' common store, has ended or cannot be reached"
            )
        leave(FAILED)


def identify_machine() -> str:
    """What two processes share that see each other's process numbers; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def read_recorder() -> str:
    """The last collectives of this rank, as JSON: torch's flight recorder."""
    of_nccl = getattr(c10d, "_dump_nccl_trace_json", None)
    dump = of_nccl or getattr(c10d, "_dump_fr_trace_json")  # noqa: B009
    return str(dump().decode())
