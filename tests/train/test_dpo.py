"""DPO's loss, its metrics and its gradients are those of the formula, pair by pair."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.transformer import Transformer
from shards.chat.labels import BEGIN, REJECTED
from tests.model.test_loss import relative_error
from tests.preferences import Pair, lay_out, make_pairs, pack
from tests.tiny import make_model
from train.preferences.dpo import METRICS, compute_dpo
from train.preferences.learn import Preferences
from train.preferences.pairs import count_pairs, find_pairs
from train.preferences.reference import Reference
from train.targets import MicroBatch, split_windows

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


def make_batch(tokens: Tensor, labels: Tensor) -> MicroBatch:
    """What a run makes of rows of a set, which are padded with 0."""
    return split_windows(tokens, 0, labels)


def compute_ours(model: Transformer, reference: Transformer, batch: MicroBatch) -> Tensor:
    """The same of a batch."""
    return Preferences(Reference(reference), BETA, 0.0).lose(model, batch)


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


@pytest.mark.parametrize("row_tokens", [None, 48, 100])
def test_loss_metrics_and_gradients_are_those_of_the_formula(row_tokens: int | None) -> None:
    """However halves lie in rows: each alone, or whole pairs packed, padded or not."""
    models = make_models()
    pairs = make_pairs(6)
    batch = make_batch(*(lay_out(pairs) if row_tokens is None else pack(pairs, row_tokens)))
    assert batch.labels is not None
    assert count_pairs(batch.labels) == find_pairs(batch.labels).count == 6
    found, expected = compute_ours(*models, batch), compute_naively(*models, pairs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert 0 < found[1 + METRICS.index("rewards/accuracies")] < 1
    # A run differentiates the sum, as metrics have no gradient.
    gradients = [differentiate(models[0], loss) for loss in (found.sum(), expected[0])]
    assert len(gradients[0]) == len([*models[0].parameters()])
    for ours, naive in zip(*gradients, strict=True):
        assert relative_error(ours, naive) < 1e-5
    assert all(weight.grad is None for weight in models[1].parameters())


def test_a_model_that_is_its_reference_has_the_loss_log_2_and_no_rewards() -> None:
    model = make_model()
    found = compute_ours(model, model, make_batch(*pack(make_pairs(4), 64)))
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


def test_sums_are_those_of_their_half_alone() -> None:
    """Whatever the values beside it: as long as two rows of one half each, and as short as one."""
    labels = torch.zeros(3, 37, dtype=torch.uint8)
    labels[0, 0] = labels[1, 0] = labels[2, 0] = BEGIN
    for row, column in ((0, 5), (0, 30), (1, 1), (2, 36)):  # A rejected half, behind a chosen one.
        labels[row, column] = BEGIN | REJECTED
        labels[row, column + 1 : 30] = REJECTED
    labels[0, 12] = BEGIN  # A pair more in the first row.
    values = torch.rand(labels.shape, dtype=torch.float64).requires_grad_()
    pairs = find_pairs(labels)
    chosen, rejected = (sums[pairs.is_pair] for sums in pairs.add_up(values))
    bounds = [(0, 0, 5, 12), (0, 12, 30, 37), (1, 0, 1, 37), (2, 0, 36, 37)]
    rows = values.detach().unbind()
    expected = [[rows[row][a:b].sum(), rows[row][b:c].sum()] for row, a, b, c in bounds]
    found = torch.stack([chosen, rejected], 1)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    weights = torch.rand(found.shape, dtype=torch.float64)
    [gradient] = torch.autograd.grad((found * weights).sum(), values)
    for (row, a, b, c), (one, two) in zip(bounds, weights.tolist(), strict=True):
        assert gradient[row, a:b].eq(one).all()
        assert gradient[row, b:c].eq(two).all()
    values.detach()[0, 2] = torch.nan  # Of one half.
    counts = [int(sums[pairs.is_pair].isnan().sum()) for sums in pairs.add_up(values)]
    assert counts == [1, 0]


def test_rows_have_losses_of_their_own() -> None:
    model, reference = make_models()
    pairs = make_pairs(5)
    tokens, labels = pack(pairs, 64)
    preferences = Preferences(Reference(reference), BETA, 0.0)
    found = preferences.lose_rows(model, make_batch(tokens, labels))
    assert not found.requires_grad
    counts = [count_pairs(row) for row in labels]
    assert len(set(counts)) > 1
    for row, loss in enumerate(found):
        first = sum(counts[:row])
        expected = compute_naively(model, reference, pairs[first : first + counts[row]])
        assert loss.item() == pytest.approx(expected[0].item(), abs=1e-5)


def test_labels_that_may_be_wrong_make_the_loss_a_mixture_of_both() -> None:
    """As if each pair were there the other way around as well, with that weight."""
    batch = make_batch(*pack(make_pairs(5), 64))
    other = make_batch(*pack([(p, r, c) for p, c, r in make_pairs(5)], 64))
    model, reference = make_models()
    losses = [compute_ours(model, reference, each)[0] for each in (batch, other)]
    found = Preferences(Reference(reference), BETA, 0.2).lose(model, batch)
    assert found[0].item() == pytest.approx((0.8 * losses[0] + 0.2 * losses[1]).item(), rel=1e-5)


def test_in_fp16_gradients_have_the_loss_scale_before_they_are_rounded() -> None:
    model, reference = make_models()
    batch = make_batch(*pack(make_pairs(6), 64))
    expected = differentiate(model, compute_ours(model, reference, batch)[0])
    with torch.autocast("cpu", torch.float16):
        loss = compute_ours(model, reference, batch)[0]
    found = differentiate(model, loss * 2**12)
    for half, single in zip(found, expected, strict=True):
        assert relative_error(half / 2**12, single) < 0.02
