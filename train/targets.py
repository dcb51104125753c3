"""What is predicted of windows: the tokens that a model reads, and the target of each.

A window of T + 1 tokens lends its last token as a target only. A packed set's row is T tokens,
which are all read: the last predicts nothing, as the next row has nothing to do with it. Neither
does what predicts padding, which is end tokens after the end of a document. So are documents that
were removed with their places kept: no end token after another one is a target.

Rows of chats have labels (shards/chat/labels.py): there, a token is a target if it is marked so.

B rows, T tokens of each.
"""

from typing import NamedTuple

from torch import Tensor

from model.loss import IGNORED
from shards.chat.labels import BEGIN, LOSS


class MicroBatch(NamedTuple):
    """What a model reads and predicts in a micro-step, each (B, T)."""

    tokens: Tensor
    targets: Tensor
    # Of a run that reads chats: the bits of shards/chat/labels.py.
    labels: Tensor | None = None

    @property
    def firsts(self) -> Tensor | None:
        """Where documents begin, if labels say so: (B, T) of bool."""
        return None if self.labels is None else (self.labels & BEGIN) != 0


def split_windows(windows: Tensor, padding: int | None, labels: Tensor | None = None) -> MicroBatch:
    """The tokens and targets (B, T) of windows: (B, T + 1), or with `padding` rows (B, T).

    With `labels` (B, T) of such rows, those tokens are targets that have the bit LOSS.

    >>> import torch
    >>> tokens, targets, _ = split_windows(torch.tensor([[5, 7, 0, 8, 0, 0, 0]]), padding=0)
    >>> targets.tolist()
    [[7, 0, 8, 0, -100, -100, -100]]
    >>> chat = torch.tensor([[BEGIN, 0, LOSS, LOSS, BEGIN, LOSS, 0]], dtype=torch.uint8)
    >>> split_windows(torch.tensor([[5, 7, 1, 2, 5, 3, 0]]), 0, chat).targets.tolist()
    [[-100, 1, 2, -100, 3, -100, -100]]
    """
    if padding is None:
        return MicroBatch(windows[:, :-1], windows[:, 1:])
    targets = windows.roll(-1, 1)
    targets[:, -1] = IGNORED
    if labels is None:
        is_ignored = (windows == padding) & (targets == padding)
    else:
        is_ignored = (labels.roll(-1, 1) & LOSS) == 0
    return MicroBatch(windows, targets.masked_fill(is_ignored, IGNORED), labels)


def count_targets(windows: Tensor, padding: int, labels: Tensor | None = None) -> int:
    """How many targets of rows (B, T), which are on the host, count."""
    if labels is not None:
        return int(((labels[:, 1:] & LOSS) != 0).sum())
    is_padding = windows == padding
    num_paddings = int((is_padding[:, :-1] & is_padding[:, 1:]).sum())
    return windows.shape[0] * (windows.shape[1] - 1) - num_paddings
