"""The progress of a run on the screen: a line that is redrawn, and now and then one that stays."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from shards.screen.lines import ScreenLine

FORMATS = {
    "loss": "loss {:.3f}",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "norm {:.2f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
}


class Progress:
    """The progress line of a run from `first_step` to `num_steps`.

    On a terminal each entry of the log takes the place of the one before, except that the first one
    after every `kept_steps` steps stays. A file or a pipe gets them all.
    """

    def __init__(self, first_step: int, num_steps: int, kept_steps: int) -> None:
        self.first_step = first_step
        self.num_steps = num_steps
        self.kept_steps = kept_steps
        self.drawn_step = first_step
        self.started = time.monotonic()
        self.line = ScreenLine(sys.stderr)

    def draw(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the metrics of the run after `step` steps."""
        seconds = time.monotonic() - self.started
        text = describe_progress(step, self.first_step, self.num_steps, seconds, metrics)
        self.line.draw(text)
        if step // self.kept_steps > self.drawn_step // self.kept_steps:
            self.line.keep()
        self.drawn_step = step

    def go_back(self, step: int) -> None:
        """The run is at an earlier step again; what is left is told from its speed since."""
        self.first_step = self.drawn_step = step
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.line.say(text)

    def close(self) -> None:
        """Let the last line stay."""
        self.line.keep()


def describe_progress(
    step: int,
    first_step: int,
    num_steps: int,
    seconds: float,
    metrics: Mapping[str, float | None],
) -> str:
    """The progress line of a run that took `seconds` from `first_step` to `step`.

    >>> describe_progress(50, 0, 100, 60.0, {"loss": 5.5, "tokens_per_second": 1234.0})
    'step 50/100  loss 5.500  1,234 tokens/s  0:01:00 left'
    """
    parts = [f"step {step:,}/{num_steps:,}"]
    for name, template in FORMATS.items():
        value = metrics.get(name)
        if value is not None:
            parts.append(template.format(value))
    left = round(seconds / max(step - first_step, 1) * (num_steps - step))
    parts.append(f"{timedelta(seconds=left)} left")
    return "  ".join(parts)
