"""What is predicted of windows: the tokens that a model reads, and the target of each.

A window of T + 1 tokens lends its last token as a target only. A packed set's row is T tokens,
which are all read: the last predicts nothing, as the next row has nothing to do with it. Neither
does what predicts padding, which is end tokens after the end of a document. So are documents that
were removed with their places kept: no end token after another one is a target.

B rows, T tokens of each.
"""

from torch import Tensor

from model.loss import IGNORED


def split_windows(windows: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
    """The tokens and targets (B, T) of windows: (B, T + 1), or with `padding` rows (B, T).

    >>> import torch
    >>> tokens, targets = split_windows(torch.tensor([[5, 7, 0, 8, 0, 0, 0]]), padding=0)
    >>> targets.tolist()
    [[7, 0, 8, 0, -100, -100, -100]]
    """
    if padding is None:
        return windows[:, :-1], windows[:, 1:]
    targets = windows.roll(-1, 1)
    targets[:, -1] = IGNORED
    return windows, targets.masked_fill((windows == padding) & (targets == padding), IGNORED)


def count_targets(windows: Tensor, padding: int) -> int:
    """How many targets of rows (B, T), which are on the host, count."""
    is_padding = windows == padding
    num_paddings = int((is_padding[:, :-1] & is_padding[:, 1:]).sum())
    return windows.shape[0] * (windows.shape[1] - 1) - num_paddings
