"""What is found without sorting is what sorting finds; what a text is known by grows with it."""

import random
import tracemalloc
from dataclasses import replace

import pytest
import torch

from model.decode.history import History, scan_followers
from model.decode.largest import find_largest, find_places, rank_largest, sort_numbers
from model.decode.penalties import adjust_logits
from model.decode.sampler import choose_tokens
from model.decode.settings import Settings
from tests.model.test_sampler import draw_draft, make_draft

# What they drew when rows were still sorted: the text of a seed is never to change.
DRAWN = {
    "default": (Settings(), [1003, 118, 3260, 3306, 4977, 3545, 4966, 1095]),
    "all": (
        Settings(top_k=0, top_p=1, temperature=1.0),
        [3645, 3813, 1387, 3881, 1600, 1714, 3460, 371],
    ),
    "top-p": (
        Settings(top_k=0, top_p=0.95, temperature=1.0),
        [3640, 2312, 44, 2778, 384, 2023, 2824, 1095],
    ),
    "min-p": (
        Settings(top_k=0, top_p=1, min_p=0.02, temperature=1.5),
        [4254, 3542, 4422, 61, 3279, 2820, 3767, 1095],
    ),
    "typical": (
        Settings(top_k=0, top_p=1, typical_p=0.8, temperature=1.0),
        [1274, 3461, 259, 4256, 637, 2023, 3067, 1095],
    ),
    "penalties": (
        Settings(
            repetition_penalty=1.3,
            frequency_penalty=0.5,
            presence_penalty=-0.5,
            no_repeat_ngram_size=2,
            min_new_tokens=3,
        ),
        [1003, 83, 3260, 3881, 3778, 3545, 65, 1095],
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_seeds_give_the_tokens_that_they_gave(name: str) -> None:
    settings, expected = DRAWN[name]
    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(1)) * 3
    drafts = [make_draft(settings, [*range(4900, 5000)], 50, seed=b) for b in range(8)]
    for draft, token in zip(drafts, choose_tokens(logits, drafts), strict=True):
        draft.tokens.append(token)
    assert choose_tokens(logits, drafts) == expected


@pytest.mark.parametrize("width", [1, 64, 500, 5003])
@pytest.mark.parametrize("kind", ["different", "ties", "few", "one high"])
def test_the_largest_are_those_that_torch_finds(width: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(3, width + 5, generator=generator)[:, :width]
    if kind == "ties":
        rows = rows.mul(4).round()
    elif kind == "few":
        rows = rows.masked_fill(torch.rand(rows.shape, generator=generator) < 0.99, -torch.inf)
    elif kind == "one high":
        rows[:, -1] = 9.0  # Behind the last whole group.
    assert torch.equal(find_largest(rows), rows.argmax(-1))
    for count in (1, 7, 50, width - 1):
        if 0 < count <= width:
            values, places = rank_largest(rows, count)
            best = rows.topk(count)
            assert torch.equal(values, best.values)
            assert torch.equal(places, best.indices)
    assert torch.equal(sort_numbers(rows), rows.sort(descending=True).values)
    ordered = rows[:1].sort(descending=True, stable=True)
    middle = float(ordered.values[0, width // 2])
    num_found = int((rows[0] >= middle).sum())
    assert torch.equal(find_places(rows[:1], middle), ordered.indices[:, :num_found])


def test_a_vocabulary_of_a_size_in_use_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a token would take longer to choose than a small model's step takes."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("sorted")

    logits = torch.randn(2, 50257, generator=torch.Generator().manual_seed(0)) * 3
    for name in ("topk", "sort", "argmax"):
        monkeypatch.setattr(torch.Tensor, name, fail)
    for settings in (Settings(), Settings(top_k=0), Settings(temperature=0), Settings(logprobs=5)):
        assert len(choose_tokens(logits, [make_draft(settings, seed=b) for b in range(2)])) == 2


@pytest.mark.parametrize("seed", range(4))
def test_a_growing_text_is_known_as_if_it_were_read_anew(seed: int) -> None:
    rng = random.Random(seed)
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(seed))
    drafts = [draw_draft(rng) for _ in logits]
    for draft in drafts:
        penalty = rng.choice([0.0, 0.7])
        draft.settings = replace(draft.settings, frequency_penalty=penalty, presence_penalty=1.0)
    for step in range(200):
        if step == 100:  # A branch goes on by itself.
            drafts += [draft.branch() for draft in drafts]
            logits = torch.cat([logits, logits.flip(-1)])
        anew = [replace(draft, history=History()) for draft in drafts]
        found = adjust_logits(logits, drafts)
        if step % 20 == 0 or step > 195:
            assert torch.equal(found, adjust_logits(logits, anew))
        for draft in drafts:
            draft.tokens.append(rng.randrange(rng.choice([5, 500])))


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 40])
def test_n_grams_of_any_size_are_those_that_the_text_has(size: int) -> None:
    rng = random.Random(size)
    tokens = [*rng.choices(range(2), k=60)] * 2 + [1]
    history = History()
    for end in range(size, len(tokens) + 1):
        text = tokens[:end]
        ngrams = [text[start : start + size] for start in range(end - size + 1)]
        last = text[end - size + 1 :]
        expected = {ngram[-1] for ngram in ngrams if ngram[:-1] == last}
        assert {*history.find_followers(text, size)} == expected
        assert {*scan_followers(text, size)} == expected


def test_n_grams_of_a_long_text_take_no_more_memory_than_the_text() -> None:
    tokens = [*range(20_000)]
    tracemalloc.start()
    assert [*History().find_followers([*tokens, *tokens[:9_999]], 10_000)] == [9_999]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_an_end_outside_of_the_vocabulary_is_not_forbidden() -> None:
    draft = make_draft(Settings(min_new_tokens=3, temperature=0), [1])
    draft.ends = (1, 900)
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert choose_tokens(logits, [draft]) == [2]
