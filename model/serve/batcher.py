"""Writes many requests' texts together: they join and leave between two tokens.

One thread owns the model. It takes waiting texts in the order in which they came, as many as have
a place, reads their prompts a few at a time so that nobody's next token waits for all of them, and
then writes one token of every text. What was written goes to each request's event loop.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from model.cache import allocate_cache
from model.decode.batch import Batch
from model.decode.draft import Draft, FinishReason
from model.decode.generator import Generator
from model.decode.logprobs import TokenLogprob
from model.decode.sampler import choose_tokens
from model.serve.measuring import Measuring

logger = logging.getLogger("velocity")

# Tokens of prompts that are read between two tokens of the texts that are being written.
READ_TOKENS = 512
MAX_RETRY_SECONDS = 30

EndReason = FinishReason | Literal["time", "shutdown"]


@dataclass(frozen=True)
class Update:
    """What was added to a text of a request."""

    index: int  # Which of the request's texts.
    piece: str
    tokens: tuple[int, ...]
    ended_by: EndReason | None = None
    # Of the tokens, where the draft's settings ask for them; in a text's first update, those of the
    # prompt too, where the job asks for them.
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


class Overloaded(Exception):
    """There is no room for the texts now; there may be in so many seconds."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"no room for more texts; again in {seconds} s")
        self.seconds = seconds


class Stopping(Exception):
    """The server ends, and takes no more texts."""


class ModelFailure(Exception):
    """The model could not write: a fault of the server's, not of the request."""


@dataclass(eq=False)
class Job:
    """A request's texts; `send` takes what is added to them, or an error that ends them all.

    It is called on the thread that owns the model. `deadline` is on time.monotonic's clock.
    """

    drafts: Sequence[Draft]
    send: Callable[[list[Update] | Exception], None]
    deadline: float = math.inf
    scores_prompts: bool = False  # Whether log-probabilities of the prompts' tokens are wanted.
    is_started: bool = False
    is_over: bool = False  # Whatever comes is for nobody.


@dataclass(eq=False)
class Place:
    """One text of a job, while it waits and while it is written."""

    job: Job
    index: int
    draft: Draft
    num_sent: int  # Its tokens that the job knows.
    started: float
    scores: list[TokenLogprob] = field(default_factory=list)  # Of its prompt, until they are sent.

    def take(self, piece: str, ended_by: EndReason | None) -> Update:
        """What is new since the last time."""
        new = tuple(self.draft.tokens[self.num_sent :])
        self.num_sent += len(new)
        logprobs = tuple(self.draft.logprobs[-len(new) :]) if new else ()
        scores, self.scores = tuple(self.scores), []
        return Update(self.index, piece, new, ended_by, logprobs, scores)

    def find_end(self, now: float, is_cut: bool) -> EndReason | None:
        """Why the text ends before it is finished, if it does."""
        if is_cut or self.job.is_over:
            return "shutdown"
        return "time" if now >= self.job.deadline else None


class Batcher:
    """The queue of texts, and the thread that writes them.

    At most `max_texts` are written at a time, and `max_waiting` more wait for that.
    """

    def __init__(self, generator: Generator, max_texts: int, max_waiting: int) -> None:
        self.generator = generator
        self.max_texts = max_texts
        self.room = max_texts + max_waiting
        self.num_prompt_tokens = self.num_written_tokens = self.num_steps = 0
        self._empty()
        self._waiting = deque[Place]()
        self._places: dict[int, Place] = {}  # Of the drafts in the batch, by their id().
        self._num_inside = 0  # Texts that wait or are being written.
        self._change = threading.Condition()
        self._has_failed = False  # Whether the model's last step did.
        self._cut_at: float | None = None  # When texts end unfinished, once the server ends.
        self._mean_seconds = 1.0  # From when a text came to its end; the latest count most.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def _empty(self) -> None:
        """Begin without texts."""
        self._batch = Batch(self.generator.predictor, READ_TOKENS)
        self._measuring = Measuring(self.generator.predictor)

    def submit(self, job: Job) -> None:
        """Let a job's texts wait for their places. Raises Overloaded or Stopping."""
        now = time.monotonic()
        places = [Place(job, i, d, len(d.tokens), now) for i, d in enumerate(job.drafts)]
        with self._change:
            if self._cut_at is not None:
                raise Stopping
            if self._num_inside + len(places) > self.room:
                raise Overloaded(self._guess_wait())
            self._num_inside += len(places)
            self._waiting += places
            self._change.notify()

    def cancel(self, job: Job) -> None:
        """Give the places of a job's texts to others; nothing more is sent to it."""
        with self._change:
            job.is_over = True
            self._change.notify()

    @property
    def num_bytes(self) -> int:
        """Bytes that keys and values take at most: of all texts, a prompt, and a measured one."""
        model, dtype = self.generator.model, self.generator.model.model.norm.weight.dtype
        nowhere = torch.device("meta")
        num_rows, context = self.max_texts + 2, self.generator.context
        cache = allocate_cache(model.config, num_rows, context, nowhere, dtype)
        return cache.keys.nbytes + cache.values.nbytes

    def cut(self) -> None:
        """Cut every text at the next token; may be called by a signal's handler."""
        self._cut_at = 0.0

    def stop(self, seconds: float) -> None:
        """Take no more texts, write for so many seconds, cut what has not ended, and return."""
        with self._change:
            if self._cut_at is None:
                self._cut_at = time.monotonic() + seconds
            self._change.notify()
        self._thread.join()

    @property
    def is_ready(self) -> bool:
        """Whether texts are taken and written."""
        return self._thread.is_alive() and self._cut_at is None and not self._has_failed

    @property
    def num_running(self) -> int:
        """Texts that are being written."""
        return len(self._places)

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a place."""
        return len(self._waiting)

    def _guess_wait(self) -> int:
        """Seconds until a place may be free."""
        rounds = self._num_inside / self.max_texts
        return max(1, min(MAX_RETRY_SECONDS, math.ceil(self._mean_seconds * rounds)))

    def _run(self) -> None:
        try:
            while self._wait():
                try:
                    self._leave()
                    self._join()
                    self._measure()
                    self._step()
                except Exception as error:
                    self._fail(error)
        finally:
            with self._change:
                self._cut_at = self._cut_at or 0.0
                for place in [*self._places.values(), *self._waiting]:
                    self._send(place.job, ModelFailure("the model's thread has ended"))

    def _wait(self) -> bool:
        """Wait until there is something to do; False once nothing ever will be."""
        with self._change:
            while not self._waiting and not self._places:
                if self._cut_at is not None:
                    return False
                self._change.wait()
            return True

    def _leave(self) -> None:
        """End the texts that nobody waits for any more, and those whose time is up."""
        now = time.monotonic()
        is_cut = self._cut_at is not None and now >= self._cut_at
        with self._change:
            waiting, self._waiting = self._waiting, deque()
            for place in waiting:
                if self._cut_at is not None and not place.job.is_started:
                    self._send(place.job, Stopping())
                    self._end(place, "", "shutdown")
                elif reason := place.find_end(now, is_cut):
                    self._send(place.job, [self._end(place, "", reason)])
                else:
                    self._waiting.append(place)
        for place in [*self._places.values()]:
            if reason := place.find_end(now, is_cut):
                if not self._measuring.leave(place.draft):
                    self._batch.leave(place.draft)
                update = self._end(place, place.draft.stream.finish(), reason)
                self._send(place.job, [update])

    def _join(self) -> None:
        """Give free places to those who came first."""
        group: list[Place] = []
        with self._change:
            while self._waiting and len(self._places) + len(group) < self.max_texts:
                group.append(self._waiting.popleft())
        for place in group:
            self._places[id(place.draft)] = place
            place.job.is_started = True
            self.num_prompt_tokens += place.num_sent
            if place.job.scores_prompts:
                self._measuring.join(place.draft)
            else:
                self._begin(place)

    def _measure(self) -> None:
        """Read on in the prompts that are measured; one more token comes from the same reading.

        Harnesses of evaluation ask for it.
        """
        for draft, scores, logits in self._measuring.step(READ_TOKENS):
            place, piece = self._places[id(draft)], ""
            place.scores = scores
            if draft.limit - len(draft.tokens) == 1:
                piece = draft.add(*choose_tokens(logits, [draft]))
            self._begin(place, piece)

    def _begin(self, place: Place, piece: str = "") -> None:
        """Let a text be written, unless it is as long as it may be."""
        draft = place.draft
        if len(draft.tokens) < draft.limit:
            self._batch.join([draft])
            return
        update = self._end(place, piece, draft.finish_reason or draft.limit_reason)
        self.num_written_tokens += len(update.tokens)
        self._send(place.job, [update])

    def _step(self) -> None:
        """Write a token of every text, and send it to who waits for it."""
        if not self._places:
            return
        pieces: dict[int, str] = {}
        for draft, piece in self._batch.step():  # A draft may have got several tokens.
            pieces[id(draft)] = pieces.get(id(draft), "") + piece
        updates: dict[Job, list[Update]] = {}
        for place in [*self._places.values()]:
            if len(place.draft.tokens) > place.num_sent:  # Its prompt has been read.
                piece, reason = pieces.get(id(place.draft), ""), place.draft.finish_reason
                update = self._end(place, piece, reason) if reason else place.take(piece, None)
                self.num_written_tokens += len(update.tokens)
                updates.setdefault(place.job, []).append(update)
        self.num_steps += 1
        self._has_failed = False
        for job, new in updates.items():
            self._send(job, new)

    def _end(self, place: Place, piece: str, reason: EndReason) -> Update:
        """Free a text's place; its last update."""
        self._places.pop(id(place.draft), None)
        with self._change:
            self._num_inside -= 1
            self._mean_seconds += 0.1 * (time.monotonic() - place.started - self._mean_seconds)
        return place.take(piece, reason)

    def _fail(self, error: Exception) -> None:
        """End every text in the batch: it is in no state to go on with."""
        self._has_failed = True
        logger.error("velocity: the model could not go on: %s: %s", type(error).__name__, error)
        self._empty()
        for place in [*self._places.values()]:
            self._end(place, "", "shutdown")
            self._send(place.job, ModelFailure(str(error)))

    def _send(self, job: Job, news: list[Update] | Exception) -> None:
        """Send what is new; after an error, nothing more."""
        if not job.is_over:
            job.is_over = isinstance(news, Exception)
            job.send(news)
