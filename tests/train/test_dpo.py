"""DPO's loss, its metrics and its gradients are those of the formula, pair by pair."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.transformer import Transformer
from shards.chat.labels import BEGIN
from tests.model.test_loss import relative_error
from tests.preferences import Pair, lay_out, make_pairs
from tests.tiny import make_model
from train.preferences.dpo import METRICS, compute_dpo
from train.preferences.pairs import count_pairs, find_pairs

BETA = 0.3


def lose_alone(model: Transformer, prompt: list[int], answer: list[int]) -> Tensor:
    """-log p(answer | prompt), computed alone from all logits."""
    tokens = torch.tensor(prompt + answer)
    logits = model(tokens[None])[0, len(prompt) - 1 : -1]
    return F.cross_entropy(logits, tokens[len(prompt) :], reduction="sum")


def compute_naively(model: Transformer, reference: Transformer, pairs: Sequence[Pair]) -> Tensor:
    """The loss and the metrics, pair by pair, as the paper has them."""
    found = []
    for prompt, *answers in pairs:
        chosen, rejected = (-lose_alone(model, prompt, answer) for answer in answers)
        with torch.no_grad():
            before = [-lose_alone(reference, prompt, answer) for answer in answers]
        rewards = BETA * (chosen - before[0]), BETA * (rejected - before[1])
        margin = rewards[0] - rewards[1]
        accuracy = (margin > 0).float()
        found.append(
            torch.stack([-margin.sigmoid().log(), *rewards, accuracy, margin, chosen, rejected])
        )
    return torch.stack(found).mean(0)


def compute_ours(
    model: Transformer, reference: Transformer, tokens: Tensor, labels: Tensor
) -> Tensor:
    """The same of a batch."""
    targets = find_targets(tokens, labels)
    with torch.no_grad():
        before = reference(tokens, targets, grad_scale=None)
    losses = model(tokens, targets, grad_scale=None)
    return compute_dpo(losses, before, find_pairs(labels), BETA)


def differentiate(model: Transformer, loss: Tensor) -> list[Tensor]:
    """The gradients of all weights."""
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def make_models() -> tuple[Transformer, Transformer]:
    """A model, and its reference, which is not far from it."""
    model, reference = make_model(), make_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape)
    return model, reference


def test_loss_metrics_and_gradients_are_those_of_the_formula() -> None:
    models = make_models()
    pairs = make_pairs(6)
    tokens, labels = lay_out(pairs)
    assert count_pairs(labels) == find_pairs(labels).count == 6
    found, expected = compute_ours(*models, tokens, labels), compute_naively(*models, pairs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert 0 < found[1 + METRICS.index("rewards/accuracies")] < 1
    gradients = [differentiate(models[0], value[0]) for value in (found, expected)]
    assert len(gradients[0]) == len([*models[0].parameters()])
    for ours, naive in zip(*gradients, strict=True):
        assert relative_error(ours, naive) < 1e-5
    assert all(weight.grad is None for weight in models[1].parameters())


def test_a_model_that_is_its_reference_has_the_loss_log_2_and_no_rewards() -> None:
    model = make_model()
    found = compute_ours(model, model, *lay_out(make_pairs(4)))
    assert found[0].item() == pytest.approx(np.log(2), abs=1e-6)
    assert found[1:5].tolist() == [0, 0, 0, 0]


def test_a_batch_without_pairs_is_nothing() -> None:
    labels = torch.zeros(2, 8, dtype=torch.uint8)
    labels[:, 0] = BEGIN
    losses = torch.rand(2, 8, requires_grad=True)
    found = compute_dpo(losses, torch.rand(2, 8), find_pairs(labels), BETA)
    assert found.tolist() == [0] * 7
    found[0].backward()  # type: ignore[no-untyped-call]
    assert losses.grad is not None
    assert not losses.grad.any()
