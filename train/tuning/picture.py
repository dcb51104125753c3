"""The losses over the learning rates, as an SVG file that any browser shows."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.disk.durable import write_file
from train.page.axes import Axis, make_value_axis
from train.page.curves import Curve
from train.page.markup import show
from train.page.svg import HEIGHT, TOP, WIDTH, draw_axes, move_right, move_up, text
from train.tuning.trials import Trial

PICTURE = "tuning.svg"
STYLE = (
    "<style>svg{background:#fff;color:#3b6ea5}text{font:11px system-ui,sans-serif;fill:#444}"
    ".grid{stroke:#ddd;fill:none}.axis{stroke:#888;fill:none}"
    ".line{stroke:currentColor;fill:none;stroke-width:1.5}.dot{fill:currentColor}"
    ".lost{stroke:#b93226;stroke-width:1.5}</style>"
)
# Half the size of the cross that stands for a run that diverged.
CROSS = 3


def write_picture(folder: Path, parameter: str, trials: Sequence[Trial]) -> Path:
    """Draw the trials into the folder; the file's path."""
    path = folder / PICTURE
    write_file(path, draw(parameter, sorted(trials, key=lambda trial: trial.rate)))
    return path


def draw(parameter: str, trials: Sequence[Trial]) -> str:
    """The drawing of trials in the order of their rates; those that diverged are crosses on top."""
    kept = [trial for trial in trials if trial.loss is not None]
    losses = np.array([trial.loss for trial in kept] or [0.0], np.float64)
    x = make_rate_axis([trial.rate for trial in trials])
    y = make_value_axis([Curve(np.arange(len(losses)), losses)], is_log=False)
    told = ", ".join(f"{trial.rate:g}: {describe_loss(trial)}" for trial in trials)
    lefts = move_right(x, [trial.rate for trial in kept])
    places = [*zip(lefts, move_up(y, losses.tolist()), strict=False)]
    points = " ".join(f"{left},{top}" for left, top in places)
    lost = move_right(x, [trial.rate for trial in trials if trial.loss is None])
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>Validation loss by {show(parameter)}</title>",
            f"<desc>{show(told)}</desc>",
            STYLE,
            *draw_axes(x, y, "validation loss, nats a token", parameter),
            f'<polyline class="line" points="{points}"/>',
            *(f'<circle class="dot" cx="{a}" cy="{b}" r="2.5"/>' for a, b in places),
            *(draw_cross(left) for left in lost),
            *(text(left, TOP + 14, "diverged", "middle") for left in lost[:1]),
            "</svg>",
            "",
        ]
    )


def make_rate_axis(rates: Sequence[float]) -> Axis:
    """A logarithmic axis, with the rates themselves as marks."""
    every = math.ceil(len(rates) / 6)
    return Axis(min(rates) / 1.2, max(rates) * 1.2, [*rates[::every]], is_log=True)


def describe_loss(trial: Trial) -> str:
    """A trial's loss in words."""
    return "diverged" if trial.loss is None else f"{trial.loss:.4f}"


def draw_cross(left: float) -> str:
    """A cross at the top."""
    a, b, c, d = left - CROSS, TOP - CROSS, left + CROSS, TOP + CROSS
    return f'<path class="lost" d="M{a} {b}L{c} {d}M{a} {d}L{c} {b}"/>'
