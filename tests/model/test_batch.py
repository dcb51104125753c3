"""Texts join, grow and leave a batch, and each stays what it is alone."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from model.cache import KVCache
from model.decode.batch import Batch
from model.decode.draft import Draft
from model.decode.generator import Generator
from model.decode.predictor import Predictor
from model.decode.settings import Settings
from tests.tiny import make_model, make_tokenizer

A = make_tokenizer().token_to_id("a")
GREEDY = Settings(do_sample=False, max_new_tokens=12)
PROMPTS = [
    "One two three",
    "",
    "A prompt that is a good deal longer than all of the others are",
    "x",
]


def make_generator() -> Generator:
    """In fp64: rows summed together round as they do alone, and no draw tips over."""
    generator = Generator(make_model(), make_tokenizer())
    generator.model.double()
    return generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator()


def write_all(batch: Batch, drafts: list[Draft], num_steps: int = 200) -> None:
    for _ in range(num_steps):
        if all(draft.finish_reason for draft in drafts):
            return
        batch.step()
    pytest.fail("the texts do not end")


@pytest.mark.parametrize("read_tokens", [3, 10, 2048])
def test_texts_that_join_one_after_another_are_what_they_are_alone(
    generator: Generator, read_tokens: int
) -> None:
    sampled = replace(GREEDY, do_sample=True, seed=5)
    for settings in (GREEDY, sampled):
        alone = [generator.complete([prompt], settings)[0] for prompt in PROMPTS]
        batch = Batch(generator.predictor, read_tokens)
        drafts = generator.start(PROMPTS, settings)
        waiting = deque(drafts)
        while waiting:
            batch.join([waiting.popleft()])
            batch.step()
        write_all(batch, drafts)
        assert [draft.complete() for draft in drafts] == alone
        assert len(batch) == 0


def test_a_text_may_leave_wherever_it_is(generator: Generator) -> None:
    alone = generator.complete(PROMPTS[:1], GREEDY)[0]
    drafts = generator.start([*PROMPTS, *PROMPTS], GREEDY)
    batch = Batch(generator.predictor, read_tokens=8)
    batch.join(drafts[:3])
    while len(batch.drafts) < 2:
        batch.step()
    batch.join(drafts[3:])
    for gone in (drafts[3], drafts[1], drafts[2]):  # Waits, is written, is being read.
        batch.leave(gone)
    write_all(batch, [drafts[0], *drafts[4:]])
    assert drafts[0].complete() == alone
    assert not any(draft.finish_reason for draft in drafts[1:4])
    assert replace(drafts[4].complete()) == alone


def test_a_long_prompt_is_read_in_pieces_while_others_are_written(generator: Generator) -> None:
    short, long = generator.start(["One", "word " * 15], replace(GREEDY, max_new_tokens=40))
    batch = Batch(generator.predictor, read_tokens=10)
    batch.join([short])
    batch.step()
    batch.join([long])
    num_steps = 0
    while len(long.tokens) == long.num_prompt_tokens:
        before = len(short.tokens)
        batch.step()
        assert len(short.tokens) == before + 1 or short.finish_reason
        num_steps += 1
    assert num_steps == -(-long.num_prompt_tokens // 10)


class Repeating(Predictor):
    """Goes through the letters again and again, and counts how often it is asked."""

    num_looks = 0

    def predict(
        self, tokens: Sequence[Sequence[int]], cache: KVCache, places: Sequence[int] | None = None
    ) -> Tensor:
        self.num_looks += 1
        super().predict(tokens, cache, places)
        flat = [token for row in tokens for token in row]
        wanted = [row[-1] for row in tokens] if places is None else [flat[p] for p in places]
        following = [token + 1 if token < A + 25 else A for token in wanted]
        return one_hot(torch.tensor(following), self.num_words).double()


def test_guessed_tokens_change_no_text(generator: Generator) -> None:
    prompt = "One two three four. One two three four. One two three"
    for settings in (
        replace(GREEDY, max_new_tokens=60),
        replace(GREEDY, max_new_tokens=60, do_sample=True, seed=3, temperature=0.5, logprobs=2),
        replace(GREEDY, max_new_tokens=60, stop="e t", do_sample=True, seed=4),
    ):
        plain = generator.complete([prompt], settings)[0]
        guessed = generator.complete([prompt], replace(settings, prompt_lookup_num_tokens=6))[0]
        assert (guessed.text, guessed.tokens) == (plain.text, plain.tokens)
        assert guessed.finish_reason == plain.finish_reason
        assert len(guessed.logprobs or ()) == len(plain.logprobs or ())
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens is 65; expected from 0 to 64"):
        Settings(prompt_lookup_num_tokens=65)


def test_a_text_that_repeats_itself_takes_fewer_looks() -> None:
    found = []
    for num_guessed in (0, 6):
        generator = Generator(make_model(), make_tokenizer(), predictor=Repeating)
        settings = replace(GREEDY, max_new_tokens=100, prompt_lookup_num_tokens=num_guessed)
        completion = generator.complete([[A]], settings)[0]
        assert isinstance(generator.predictor, Repeating)
        found.append((completion.tokens, generator.predictor.num_looks))
    (plain, num_plain), (guessed, num_guessed) = found
    assert guessed == plain == tuple(A + place % 26 for place in range(101))
    # After the first round of the letters, each look gives six guessed tokens and one more.
    assert num_plain == 100
    assert num_guessed < 27 + (100 - 27) / 7 + 2


def test_a_text_ends_where_its_limit_is_however_much_is_guessed(generator: Generator) -> None:
    for limit in range(1, 12):
        settings = replace(GREEDY, max_new_tokens=limit, prompt_lookup_num_tokens=8)
        completion = generator.complete(["aa aa aa aa aa aa"], settings)[0]
        num_new = len(completion.tokens) - completion.num_prompt_tokens
        assert num_new == limit or completion.finish_reason == "end_of_text"


def test_diverged_weights_are_named(generator: Generator) -> None:
    broken = make_generator()
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(torch.nan)
    batch = Batch(broken.predictor)
    batch.join(broken.start(["x"], GREEDY))
    with pytest.raises(ValueError, match="not finite"):
        batch.step()
