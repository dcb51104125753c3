"""The server's batcher: who is written when, what each text becomes, and how it ends."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from model.decode.draft import Draft
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.serve.batcher import Batcher, Job, ModelFailure, Overloaded, Stopping, Update
from tests.tiny import make_model, make_tokenizer

RANDOM = Settings(temperature=1.5, top_k=None, top_p=None, max_new_tokens=30, seed=3)
PROMPTS = ["The quick brown fox", "A", "one two", "naïve café"]


class Client:
    """A job, and what has been sent to it."""

    def __init__(self, drafts: list[Draft], **limits: float) -> None:
        self.news = queue.Queue[list[Update] | Exception]()
        self.job = Job(drafts, self.news.put, **limits)  # type: ignore[arg-type]
        self.texts = [draft.text for draft in drafts]
        self.ends: dict[int, str] = {}
        self.log: list[tuple[int, int]] = []  # Text and number of tokens of each update.

    def take(self) -> None:
        """Wait for what is sent next."""
        news = self.news.get(timeout=120)
        if isinstance(news, Exception):
            raise news
        for update in news:
            self.texts[update.index] += update.piece
            self.log.append((update.index, len(update.tokens)))
            if update.ended_by:
                self.ends[update.index] = update.ended_by

    def wait(self) -> list[str]:
        """The texts, once all have ended."""
        while len(self.ends) < len(self.texts):
            self.take()
        return self.texts


@pytest.fixture(scope="module")
def generator() -> Generator:
    """In fp64: a batch is summed in another order than a row, and in fp32 a draw may tip over."""
    return Generator(make_model().double(), make_tokenizer())


@pytest.fixture
def batcher(generator: Generator) -> Iterator[Batcher]:
    batcher = Batcher(generator, max_texts=2, max_waiting=4)
    yield batcher
    batcher.stop(0)


def start(generator: Generator, prompt: str, num_new: int = 30, num_samples: int = 1) -> Client:
    settings = Settings(
        temperature=1.5,
        top_k=None,
        top_p=None,
        max_new_tokens=num_new,
        seed=3,
        num_return_sequences=num_samples,
    )
    return Client(generator.start([prompt], settings))


class Steps:
    """A model's steps, each of which waits until it may be taken: things happen between two."""

    def __init__(self, generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allowed = threading.Semaphore(0)
        predict = generator.model.predict

        def wait(*given: object, **named: object) -> object:
            self.allowed.acquire()
            return predict(*given, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(generator.model, "predict", wait)

    def allow(self, number: int = 100_000) -> None:
        """Let so many be taken, by default all that come."""
        self.allowed.release(number)


@pytest.fixture
def steps(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    steps = Steps(generator, monkeypatch)
    yield steps
    steps.allow()


def test_each_text_is_what_it_is_alone(generator: Generator, batcher: Batcher) -> None:
    clients = [start(generator, prompt) for prompt in PROMPTS]
    for client in clients:
        batcher.submit(client.job)
    for prompt, client in zip(PROMPTS, clients, strict=True):
        [expected] = generator.complete([prompt], RANDOM)
        assert client.wait() == [expected.text]
        assert client.ends == {0: expected.finish_reason}


def test_a_text_joins_and_leaves_while_another_is_written(
    generator: Generator, batcher: Batcher, steps: Steps
) -> None:
    long, short = start(generator, "one two", 80), start(generator, "A", 3)
    batcher.submit(long.job)
    steps.allow(2)
    long.take()
    batcher.submit(short.job)
    steps.allow(10)
    short.wait()
    assert batcher.num_running == 1
    assert not long.ends
    steps.allow()
    long.wait()


def test_a_long_prompt_does_not_keep_others_waiting(
    generator: Generator, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.serve.batcher.READ_TOKENS", 8)
    batcher = Batcher(generator, max_texts=2, max_waiting=0)
    first, long = start(generator, "one two", 80), start(generator, "!" * 100, 3)
    written = list[int]()
    send = long.job.send
    long.job.send = lambda news: (written.append(len(first.job.drafts[0].tokens)), send(news))
    batcher.submit(first.job)
    steps.allow(2)
    first.take()
    batcher.submit(long.job)
    begun = len(first.job.drafts[0].tokens)
    steps.allow()
    long.wait()
    batcher.stop(20)
    [expected] = generator.complete(["one two"], replace(RANDOM, max_new_tokens=80))
    assert first.wait() == [expected.text]
    assert written[0] - begun > 100 // 8


def test_a_prompt_that_is_measured_does_not_keep_others_waiting(
    generator: Generator, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.serve.batcher.READ_TOKENS", 8)
    batcher = Batcher(generator, max_texts=4, max_waiting=0)
    settings = replace(RANDOM, max_new_tokens=1, logprobs=2)
    measured = [Client(generator.start(["!" * 100], settings), scores_prompts=True) for _ in "ab"]
    gone = Client(generator.start(["!" * 100], settings), scores_prompts=True)
    first, scores, lengths = start(generator, "one two", 120), {}, {}

    def take(client: Client, news: list[Update] | Exception) -> None:
        if client not in lengths:
            assert isinstance(news, list)
            lengths[client] = len(first.job.drafts[0].tokens)
            scores[client] = news[0].prompt_logprobs
        client.news.put(news)

    batcher.submit(first.job)
    steps.allow(2)
    first.take()
    begun = len(first.job.drafts[0].tokens)
    for client in (measured[0], gone, measured[1]):
        client.job.send = partial(take, client)
        batcher.submit(client.job)
    batcher.cancel(gone.job)
    steps.allow()
    [expected] = generator.complete(["!" * 100], settings)
    for client in measured:
        assert client.wait() == [expected.text]
        whole = generator.score("!" * 100, 2)
        assert [one.token for one in scores[client]] == [one.token for one in whole]
        assert [one.logprob for one in scores[client][1:]] == pytest.approx(
            [one.logprob for one in whole[1:]]
        )
    assert lengths[measured[0]] - begun >= 100 // 8
    assert lengths[measured[1]] - lengths[measured[0]] >= 96 // 8
    assert gone not in lengths
    batcher.stop(20)
    assert first.wait()


def test_all_tokens_of_a_step_are_sent(
    generator: Generator, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a right guess come together."""
    [expected] = generator.complete(["A"], RANDOM)
    monkeypatch.setattr(
        Draft,
        "guess",
        lambda draft: [*expected.tokens[len(draft.tokens) : len(draft.tokens) + 3]],
    )
    client = start(generator, "A")
    batcher.submit(client.job)
    assert client.wait() == [expected.text]
    assert sum(number for _, number in client.log) == len(expected.tokens) - 1
    assert len(client.log) < 15


def test_who_comes_first_is_written_first(
    generator: Generator, batcher: Batcher, steps: Steps
) -> None:
    order: list[str] = []
    clients = {name: start(generator, name, 8) for name in PROMPTS}
    for name, client in clients.items():
        send = client.job.send
        client.job.send = lambda news, name=name, send=send: (order.append(name), send(news))
        batcher.submit(client.job)
    steps.allow()
    for client in clients.values():
        client.wait()
    firsts = [*dict.fromkeys(order)]
    assert {*firsts[:2]} == {*PROMPTS[:2]}
    assert {*firsts[2:]} == {*PROMPTS[2:]}
    # The third began when one of the first two had ended.
    assert order.index(PROMPTS[2]) > 8


def test_no_more_texts_are_taken_than_there_is_room_for(
    generator: Generator, batcher: Batcher, steps: Steps
) -> None:
    clients = [start(generator, "A", 60, num_samples=3) for _ in range(3)]
    batcher.submit(clients[0].job)
    batcher.submit(clients[1].job)
    with pytest.raises(Overloaded) as error:
        batcher.submit(clients[2].job)
    assert 1 <= error.value.seconds <= 30
    assert batcher.num_running <= 2
    steps.allow()
    clients[0].wait()
    batcher.submit(clients[2].job)
    clients[2].wait()


def test_who_goes_away_frees_the_places(
    generator: Generator, batcher: Batcher, steps: Steps
) -> None:
    gone = start(generator, "one two", 100, num_samples=4)
    batcher.submit(gone.job)
    steps.allow(2)
    gone.take()
    batcher.cancel(gone.job)
    steps.allow()
    other = start(generator, "A", 5, num_samples=6)
    while True:
        try:
            batcher.submit(other.job)
            break
        except Overloaded:
            time.sleep(0.01)
    other.wait()
    while not gone.news.empty():
        gone.take()
    assert len(gone.log) < 10


def test_a_text_whose_time_is_up_ends(generator: Generator, batcher: Batcher, steps: Steps) -> None:
    client = Client(start(generator, "A", 100).job.drafts, deadline=time.monotonic() + 1000)  # type: ignore[arg-type]
    batcher.submit(client.job)
    steps.allow(3)
    client.take()
    client.take()
    client.job.deadline = time.monotonic()
    steps.allow()
    client.wait()
    assert client.ends == {0: "time"}
    assert 1 < len(client.log) < 10


@pytest.mark.parametrize(("seconds", "expected"), [(1000.0, "length"), (0.1, "shutdown")])
def test_stopping_lets_texts_end_or_cuts_them(
    generator: Generator, steps: Steps, seconds: float, expected: str
) -> None:
    batcher = Batcher(generator, max_texts=1, max_waiting=4)
    client, waiting = start(generator, "A", 40), start(generator, "one")
    batcher.submit(client.job)
    steps.allow(2)
    client.take()
    batcher.submit(waiting.job)
    stopping = threading.Thread(target=batcher.stop, args=(seconds,))
    stopping.start()
    while batcher.is_ready:
        time.sleep(0.01)
    time.sleep(0.2)
    steps.allow()
    stopping.join()
    client.wait()
    assert client.ends == {0: expected}
    with pytest.raises(Stopping):
        waiting.wait()
    with pytest.raises(Stopping):
        batcher.submit(start(generator, "A").job)
    assert not batcher.is_ready


def test_a_fault_of_the_model_ends_its_texts_and_no_others(
    generator: Generator, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(generator, "A")
    with monkeypatch.context() as broken:
        broken.setattr(generator.model, "predict", lambda *_, **__: torch.full((1, 300), torch.nan))
        batcher.submit(client.job)
        with pytest.raises(ModelFailure, match="not finite"):
            client.wait()
        assert not batcher.is_ready
    after = start(generator, "A")
    batcher.submit(after.job)
    assert after.wait() == [generator.complete(["A"], RANDOM)[0].text]
    assert batcher.is_ready
    assert batcher.num_running == batcher.num_waiting == 0
