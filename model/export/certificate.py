"""How far an export is from its checkpoint: measured on text after it was loaded again.

T tokens of a window, V vocabulary.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.export.request import Limits

# Long enough for positions to matter, and few enough for a CPU.
WINDOW, MAX_WINDOWS = 256, 8
MIN_TOKENS = 16
# Logits that differ by less are of tokens about as likely: by a factor of at most 1.1.
NEAR = 0.1
# Gives the logits (1, T, V) of tokens (1, T), in fp32.
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Runtime:
    """An export, loaded again: what computes, and its logits."""

    name: str
    compute: Logits
    # What else the certificate should say.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """An export beside its checkpoint, over so many tokens."""

    num_tokens: int
    max_difference: float
    kl: float
    # The share of tokens after which the likeliest next one is the same; and where it is that or
    # nearly as likely to the checkpoint, as many are near ties to a model that learned little.
    agreement: float
    near_agreement: float
    loss: float
    loss_change: float


def cut_windows(ids: Sequence[int], context: int) -> list[Tensor]:
    """A text's first tokens as windows (1, T); ValueError if it has too few."""
    if len(ids) < MIN_TOKENS:
        raise ValueError(
            f"the text to certify with has {len(ids)} tokens; expected at least {MIN_TOKENS}: name "
            "a longer one with --text"
        )
    size = min(WINDOW, context, len(ids))
    starts = range(0, len(ids) - size + 1, size)
    return [torch.tensor([ids[start : start + size]]) for start in starts[:MAX_WINDOWS]]


@torch.inference_mode()
def measure(checkpoint: Logits, export: Logits, windows: Sequence[Tensor]) -> Measured:
    """The differences of their logits over these windows (1, T).

    Words that only one of the two has, which are rows of padding, do not count.
    """
    largest = kl = loss = changed = 0.0
    agreed = nearly = num_tokens = num_targets = 0
    for window in windows:
        expected, found = checkpoint(window)[0].double(), export(window)[0].double()
        num_words = min(expected.shape[1], found.shape[1])
        expected, found = expected[:, :num_words], found[:, :num_words]
        difference = (expected - found).abs().max()
        # A NaN compares as False; it has to be the largest there is.
        largest = max(largest, float(difference) if difference.isfinite() else float("inf"))
        ours, theirs = F.log_softmax(expected, -1), F.log_softmax(found, -1)
        kl += float((ours.exp() * (ours - theirs)).sum())
        chosen = found.argmax(-1, keepdim=True)
        agreed += int((expected.argmax(-1, keepdim=True) == chosen).sum())
        nearly += int((expected.amax(-1, keepdim=True) - expected.gather(1, chosen) < NEAR).sum())
        targets = window[0, 1:]
        loss += float(F.nll_loss(ours[:-1], targets, reduction="sum"))
        changed += float(F.nll_loss(theirs[:-1], targets, reduction="sum"))
        num_tokens, num_targets = num_tokens + len(window[0]), num_targets + len(targets)
    return Measured(
        num_tokens=num_tokens,
        max_difference=largest,
        kl=max(kl, 0.0) / num_tokens if kl == kl else float("nan"),
        agreement=agreed / num_tokens,
        near_agreement=nearly / num_tokens,
        loss=loss / num_targets,
        loss_change=(changed - loss) / num_targets,
    )


def find_faults(measured: Measured, limits: Limits) -> list[str]:
    """What is past its limit; a value that is not a number is."""
    faults = []
    if not measured.kl <= limits.kl:
        faults.append(f"KL {measured.kl:.2g} nats a token, at most {limits.kl:g}")
    if not measured.near_agreement >= limits.agreement:
        faults.append(
            f"the likeliest token is the same or nearly as likely after "
            f"{measured.near_agreement:.2%}, at least {limits.agreement:.1%}"
        )
    if not abs(measured.loss_change) <= limits.loss_change:
        faults.append(f"loss {measured.loss_change:+.2g} nats, at most {limits.loss_change:g}")
    return faults


def describe(measured: Measured, limits: Limits) -> list[list[str]]:
    """A table of what was measured, and how much was allowed."""
    return [
        ["largest difference of a logit", f"{measured.max_difference:.2g}", ""],
        ["KL, nats a token", f"{measured.kl:.2g}", f"at most {limits.kl:g}"],
        ["same likeliest token", f"{measured.agreement:.2%}", ""],
        [
            "or nearly as likely",
            f"{measured.near_agreement:.2%}",
            f"at least {limits.agreement:.1%}",
        ],
        [
            "change of the loss",
            f"{measured.loss_change:+.2g}",
            f"at most {limits.loss_change:g}, from {measured.loss:.3f}",
        ],
    ]


def write_certificate(
    path: Path, measured: Measured, limits: Limits, facts: dict[str, Any]
) -> None:
    """Keep what was measured beside the export, with what it was measured on."""
    content = facts | {"measured": asdict(measured), "limits": asdict(limits)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
