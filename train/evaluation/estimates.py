"""Means over windows with their standard errors, for all that was predicted and for parts of it.

Tokens of a window are alike, so a standard error is that of a ratio of sums over windows, each
taken as one draw (Cochran, Sampling Techniques, 1977, section 6.3): of windows w with sums t_w and
n_w, the ratio r = sum t / sum n has the variance W / (W - 1) * sum (t_w - r * n_w)^2 / (sum n)^2.
Of windows of one length it is the standard deviation of their means over sqrt(W).
"""

import math
from dataclasses import dataclass, field

# exp of more is no finite number.
MAX_LOSS = 700.0


@dataclass
class Ratio:
    """A sum over windows, divided by another one.

    >>> ratio = Ratio()
    >>> for top, bottom in ((2.0, 1.0), (4.0, 1.0)):
    ...     ratio.add(top, bottom)
    >>> ratio.value, ratio.stderr
    (3.0, 1.0)
    """

    top: float = 0.0
    bottom: float = 0.0
    num_windows: int = 0
    tops: float = 0.0
    products: float = 0.0
    bottoms: float = 0.0

    def add(self, top: float, bottom: float) -> None:
        """Count a window's sums; one that has nothing of this does not count."""
        if not bottom and not top:
            return
        self.top += top
        self.bottom += bottom
        self.num_windows += 1
        self.tops += top * top
        self.products += top * bottom
        self.bottoms += bottom * bottom

    @property
    def value(self) -> float | None:
        """The ratio; None of nothing."""
        return self.top / self.bottom if self.bottom else None

    @property
    def stderr(self) -> float | None:
        """Its standard error; None with fewer than two windows, and of nothing."""
        if self.num_windows < 2 or not self.bottom:
            return None
        value = self.top / self.bottom
        squares = self.tops - 2 * value * self.products + value * value * self.bottoms
        factor = self.num_windows / (self.num_windows - 1)
        return math.sqrt(max(squares, 0.0) * factor) / self.bottom


@dataclass(frozen=True)
class Sums:
    """What a window, or a part of it, adds up to."""

    tokens: float
    nats: float  # of all tokens
    right: float  # tokens that were the likeliest
    text_nats: float  # of those that stand for text
    text_bytes: float  # in UTF-8


@dataclass
class Estimate:
    """How well some tokens were predicted."""

    loss: Ratio = field(default_factory=Ratio)  # nats per token
    bits: Ratio = field(default_factory=Ratio)  # bits per byte of text
    accuracy: Ratio = field(default_factory=Ratio)

    def add(self, sums: Sums) -> None:
        """Count a window's tokens."""
        self.loss.add(sums.nats, sums.tokens)
        self.bits.add(sums.text_nats / math.log(2), sums.text_bytes)
        self.accuracy.add(sums.right, sums.tokens)

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
        return round(self.loss.bottom)

    @property
    def text_bytes(self) -> int:
        """How many bytes of text they stand for."""
        return round(self.bits.bottom)

    def describe(self) -> dict[str, float | None]:
        """The estimate as JSON."""
        loss, error = self.loss.value, self.loss.stderr
        perplexity = None if loss is None else math.exp(min(loss, MAX_LOSS))
        return {
            "tokens": self.tokens,
            "bytes": self.text_bytes,
            "loss": loss,
            "loss_stderr": error,
            "perplexity": perplexity,
            # The slope of exp at the loss is the perplexity.
            "perplexity_stderr": (perplexity or 0.0) * error if error is not None else None,
            "bits_per_byte": self.bits.value,
            "bits_per_byte_stderr": self.bits.stderr,
            "accuracy": self.accuracy.value,
            "accuracy_stderr": self.accuracy.stderr,
        }
