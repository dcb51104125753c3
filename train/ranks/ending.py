"""How all processes of a run end when something fails in one: told at once, then without waiting.

Whoever fails says why before anything is cleaned up, as cleaning up may wait for the others, and
rings the alarm (train/ranks/alarm.py), which ends these.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import NoReturn

from shards.screen.lines import say, say_text
from train.ranks.alarm import Alarm, Note, call_within, identify_screen
from train.ranks.exits import (
    DO_NOT_RESTART,
    FAILED,
    choose_exit_code,
    leave,
    prevent_restart,
    released,
)
from train.ranks.place import name_ranks

# How long a rank that lost its connection to another waits for somebody to know why.
WHY_SECONDS = 5.0


class FirstRankError(Exception):
    """What the first rank does for all has failed there; it tells why, the others only end."""


class Ending:
    """How this process of a run ends if the run fails; on one rank, as any command does."""

    def __init__(self, describe: Callable[[Exception], str] = str, debug: bool = False) -> None:
        self.describe = describe
        self.debug = debug
        # None until the ranks have met, and where there is only one.
        self.alarm: Alarm | None = None
        # Which of given ranks give no sign of life, asked for some seconds; set with the alarm.
        self.find_silent: Callable[[float], list[int]] = lambda _: []
        # Held by the thread that ends the process, and the exit code if one rank ends alone.
        self.lock = Lock()
        self.code = FAILED

    @property
    def rank(self) -> int:
        """This process's number; known once `adopt_launcher` was called."""
        return int(os.environ.get("RANK", "0"))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell an error inside to the user and to all ranks, and end this process."""
        try:
            yield
        except FirstRankError:
            self.follow_first_rank()
        except Exception as error:
            self.fail(error)

    @contextmanager
    def telling_alike(self) -> Iterator[None]:
        """The same before the ranks meet: all make the same mistake, and one on a machine tells."""
        try:
            yield
        except BrokenPipeError:  # What `| head` leaves behind.
            leave(128 + signal.SIGPIPE)
        except Exception as error:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                self.fail_alone(error, DO_NOT_RESTART)
            prevent_restart(DO_NOT_RESTART)
            sys.exit(DO_NOT_RESTART)

    def fail(self, error: Exception) -> NoReturn:
        """End by an error of this rank."""
        if self.alarm is None:
            self.fail_alone(error, choose_exit_code(error))
        if is_of_connection(error):
            note = self.explain_lost_connection(error)
        else:
            note = self.make_note(self.describe(error), choose_exit_code(error))
        self.show_traceback(error)
        self.end(note)

    def fail_alone(self, error: Exception, code: int) -> NoReturn:
        """End by an error while there are no others; what is to be cleaned up then is."""
        self.lock.acquire(blocking=False)
        self.code = code
        self.show_traceback(error)
        name = f"rank {self.rank}: " if self.rank else ""
        say(f"velocity: {name}{self.describe(error)}")
        prevent_restart(code)
        sys.exit(code)

    def make_note(self, reason: str, code: int, rank: int | None = None) -> Note:
        """A note by this rank about itself, or about another one."""
        return Note(self.rank if rank is None else rank, reason, code, teller=self.rank)

    def explain_lost_connection(self, error: Exception) -> Note:
        """Who is gone, if a collective failed: that error names no rank, and blames a wrong one.

        A rank that told why it ended ends this process meanwhile, by its note.
        """
        started = time.monotonic()
        silent = self.find_silent(WHY_SECONDS)
        time.sleep(max(0.0, started + WHY_SECONDS - time.monotonic()))
        reason = " ".join(str(error).split())
        if not silent:
            return self.make_note(f"a collective failed: {reason}; --debug shows where", FAILED)
        return self.make_note(
            f"the connection to {name_ranks(silent)} is lost, which gives no sign of life: killed, "
            f"or its machine is gone ({reason})",
            FAILED,
        )

    def end(self, note: Note) -> NoReturn:
        """Ring the alarm with a note and end; from any thread."""
        self.take_over()
        assert self.alarm is not None
        standing = self.alarm.ring(note)
        if standing is None:  # The store is gone, and the others will notice that.
            if os.environ.get("LOCAL_RANK") == "0":
                say(f"velocity: {note}")
            leave(note.code)
        if standing != note:
            self.obey(standing)
        say(f"velocity: {note}")
        self.alarm.wait_for_readers(note)
        leave(note.code)

    def follow(self, note: Note) -> NoReturn:
        """End by the note of another rank; from any thread."""
        self.take_over()
        self.obey(note)

    def obey(self, note: Note) -> NoReturn:
        """End as a note says; the first rank repeats it where the user has not seen it."""
        if self.rank == 0 and note.screen != identify_screen():
            say(f"velocity: {note}")
        if self.alarm:
            self.alarm.count_reader()
            if self.rank == 0:  # It may hold the store, where others are still to read.
                self.alarm.wait_for_readers(note)
        leave(note.code)

    def follow_first_rank(self) -> NoReturn:
        """End because of what the first rank is about to tell, or has told."""
        assert self.alarm is not None
        deadline = time.monotonic() + WHY_SECONDS
        while time.monotonic() < deadline:
            # Its store may have gone with it.
            if note := call_within(WHY_SECONDS, self.alarm.read):
                self.follow(note)
            time.sleep(0.05)
        self.end(self.make_note("the first rank failed without a word", FAILED, rank=0))

    @property
    def has_begun(self) -> bool:
        """Whether the process is ending already, for a reason that was there before a signal."""
        return self.lock.locked()

    def hurry(self, number: int) -> None:
        """Take a signal while the process is ending: nobody is waited for any more."""
        released.set()
        if self.alarm is None and number == signal.SIGINT:
            leave(self.code)

    def stop_now(self, number: int, text: str) -> NoReturn:
        """End by a signal, without a checkpoint."""
        self.take_over()
        note = self.alarm.ring(self.make_stop_note(number, text)) if self.alarm else None
        if self.alarm and note and note.teller != self.rank:
            if note.code != 128 + number:
                self.obey(note)
            self.alarm.count_reader()
        if self.rank == 0:
            say(text)
        if self.alarm and note:
            self.alarm.wait_for_readers(note)
        leave(128 + number)

    def make_stop_note(self, number: int, text: str) -> Note:
        """The note of a rank that a signal ended; only the first one says anything itself."""
        screen = identify_screen() if self.rank == 0 else ""
        return Note(self.rank, text, 128 + number, teller=self.rank, screen=screen)

    def take_over(self) -> None:
        """Let the calling thread end the process; any other one that wants to waits for that."""
        if not self.lock.acquire(blocking=False):
            while True:
                time.sleep(1)

    def show_traceback(self, error: Exception) -> None:
        """Show where an error came from, if --debug asked for that."""
        if self.debug:
            say_text("".join(traceback.format_exception(error)))


def is_of_connection(error: Exception) -> bool:
    """Whether an error is only that of a connection, as when the rank at its other end is gone."""
    # By its name: until a run begins, nothing here needs torch.
    if any(kind.__name__ == "DistError" for kind in type(error).__mro__):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
