"""Tokens are chosen as transformers chooses them, row by row, and bad settings are refused."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.decode.sampler import (
    choose_tokens,
    draw_candidates,
    find_candidates,
    penalize_repetition,
)
from model.decode.settings import Sampling

NUM_WORDS = 500


def process_as_transformers(logits: Tensor, history: Tensor, sampling: Sampling) -> Tensor:
    """Logits with -inf for what may not be drawn, by transformers' own processors."""
    steps: list[Any] = []
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return LogitsProcessorList(steps)(history, logits.clone())


def process(logits: Tensor, history: Tensor, sampling: Sampling) -> Tensor:
    """The same by this project's sampler."""
    logits = penalize_repetition(logits, history.tolist(), sampling.repetition_penalty)
    scores, tokens = find_candidates(logits, sampling)
    return torch.full_like(logits, -torch.inf).scatter(1, tokens, scores)


def draw_settings(rng: random.Random) -> Sampling:
    return Sampling(
        temperature=rng.choice([0.05, 0.5, 0.8, 1.0, 1.7, 5.0]),
        top_k=rng.choice([None, 0, 1, 2, 20, 50, NUM_WORDS, 2 * NUM_WORDS]),
        top_p=rng.choice([None, 1.0, 0.99, 0.9, 0.5, 0.1, 1e-6]),
        min_p=rng.choice([0.0, 0.001, 0.05, 0.3, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.1, 1.5, 0.7]),
    )


@pytest.mark.parametrize("seed", range(10))
def test_scores_equal_transformers_in_random_settings(seed: int) -> None:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(30):
        sampling = draw_settings(rng)
        logits = torch.randn(3, NUM_WORDS, generator=generator) * rng.choice([0.5, 3.0, 10.0])
        history = torch.randint(NUM_WORDS, (3, 40), generator=generator)
        found = process(logits, history, sampling)
        expected = process_as_transformers(logits, history, sampling)
        assert torch.equal(found.isinf(), expected.isinf()), sampling
        assert torch.equal(found, expected), sampling


def test_top_k_keeps_ties() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    sampling = Sampling(temperature=1.0, top_k=2, top_p=None)
    found = process(logits, torch.zeros(2, 1, dtype=torch.int64), sampling)
    assert found.isfinite().tolist() == [
        [False, True, True, True, True, False],
        [True, True, False, False, False, False],
    ]


def test_top_p_that_is_met_exactly_is_enough() -> None:
    logits = torch.zeros(1, 4)
    history = torch.zeros(1, 1, dtype=torch.int64)
    sampling = Sampling(temperature=1.0, top_k=None, top_p=0.75)
    for cut in (process, process_as_transformers):
        assert cut(logits, history, sampling).isfinite().sum() == 3


def test_each_repeated_token_is_penalized_once() -> None:
    logits = torch.tensor([[2.0, -2.0, 4.0], [2.0, -2.0, 4.0]])
    found = penalize_repetition(logits, [[0, 1, 0, 0], [2]], 2.0)
    assert found.tolist() == [[1.0, -4.0, 4.0], [2.0, -2.0, 2.0]]
    assert logits[0].tolist() == [2.0, -2.0, 4.0]


@pytest.mark.parametrize("greedy", [Sampling(do_sample=False), Sampling(temperature=0)])
def test_greedy_takes_the_likeliest_after_the_penalty(greedy: Sampling) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert choose_tokens(logits, [[1]], greedy, []) == [1]
    penalized = Sampling(temperature=0, repetition_penalty=2.0)
    assert choose_tokens(logits, [[1]], penalized, []) == [2]


def test_draws_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probs.log().expand(20_000, 4)
    sampling = Sampling(temperature=1.0, top_k=None, top_p=None)
    generators = [torch.Generator().manual_seed(7)] * len(logits)
    tokens = choose_tokens(logits, [[]] * len(logits), sampling, generators)
    found = torch.bincount(torch.tensor(tokens), minlength=4) / len(tokens)
    torch.testing.assert_close(found, probs, atol=0.012, rtol=0)


def test_the_smallest_and_largest_draws_stay_among_the_candidates() -> None:
    scores = torch.tensor([[0.0, -1.0, -torch.inf]])
    tokens = torch.tensor([[7, 8, 9]])
    for draw, expected in ((0.0, 7), (1 - 2**-24, 8), (1.0, 7)):
        assert draw_candidates(scores, tokens, torch.tensor([[draw]])).item() == expected


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(5, NUM_WORDS, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=2.0, top_p=0.95)

    def choose(rows: list[int]) -> list[int]:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return choose_tokens(logits[rows], [[]] * len(rows), sampling, generators)

    together = choose([0, 1, 2, 3, 4])
    assert [choose([row])[0] for row in range(5)] == together
    assert choose([4, 2]) == [together[4], together[2]]


def test_logits_that_are_not_finite_are_refused() -> None:
    for value in (torch.nan, torch.inf):
        logits = torch.tensor([[0.0, value], [0.0, 0.0]])
        with pytest.raises(ValueError, match="logits are not finite"):
            choose_tokens(logits, [[], []], Sampling(temperature=0), [])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
    ],
)
def test_settings_without_meaning_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key} is {value}; expected a number "):
        Sampling(**{key: value})
