"""A drawing as SVG in the page: in its colours, and described for those who cannot see it.

It is as wide as a phone; on a wider screen it grows.
"""

from collections.abc import Sequence

import numpy as np

from shards.screen.lines import format_number
from train.page.axes import Axis, make_step_axis, make_value_axis
from train.page.markup import show
from train.page.panels import Panel, Series

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 352, 22, 196
# Colours of the page (page.css): as many runs, or metrics of one, can be told apart.
NUM_COLORS = 8
# A curve of so few entries shows each.
MAX_DOTS = 40


def draw_svg(panel: Panel, series: Sequence[Series], num_runs: int) -> str:
    """The drawing, with a title and a description for readers of the screen."""
    curves = [one.curve for one in series]
    x, y = make_step_axis(curves), make_value_axis(curves, panel.is_log)
    told = ". ".join(f"{one.label}: {one.curve.describe()}" for one in series)
    name = f"{panel.key}-{{}}"
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-labelledby="{name.format("title")} {name.format("told")}">',
            f'<title id="{name.format("title")}">{show(panel.title)}</title>',
            f'<desc id="{name.format("told")}">{show(told)}.</desc>',
            *draw_axes(x, y, panel.y),
            *(draw_curve(one, x, y, num_runs) for one in series),
            "</svg>",
        ]
    )


def draw_axes(x: Axis, y: Axis, label: str, x_label: str = "step") -> list[str]:
    """The marks of both axes, and what they count."""
    lines = []
    for value, height in zip(y.marks, move_up(y, y.marks), strict=True):
        lines.append(f'<path class="grid" d="M{LEFT} {height}H{RIGHT}"/>')
        lines.append(text(LEFT - 5, height + 4, show_mark(value), "end"))
    lines.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
    for value, place in zip(x.marks, move_right(x, x.marks), strict=True):
        anchor = "end" if place > RIGHT - 12 else "middle"
        lines.append(text(place, BOTTOM + 15, show_mark(value), anchor))
    lines.append(text(RIGHT, BOTTOM + 30, x_label, "end"))
    lines.append(text(LEFT, TOP - 9, label, "start"))
    return lines


def draw_curve(one: Series, x: Axis, y: Axis, num_runs: int) -> str:
    """A line through the entries, dashed for the second metric of several runs."""
    thin = one.curve.thin()
    xs = move_right(x, thin.steps.tolist())
    ys = move_up(y, thin.values.tolist())
    points = " ".join(f"{left},{top}" for left, top in zip(xs, ys, strict=True))
    look = f'class="{look_of(one, num_runs)}"'
    dots = ""
    if len(xs) == 1 or (one.place and len(xs) <= MAX_DOTS):
        circles = (f'<circle cx="{a}" cy="{b}" r="2.5"/>' for a, b in zip(xs, ys, strict=True))
        dots = f"<g {look}>{''.join(circles)}</g>"
    return f'<polyline {look} points="{points}"/>{dots}'


def look_of(one: Series, num_runs: int) -> str:
    """The class of a curve: a colour for each metric of one run, or for each of several runs."""
    if num_runs == 1:
        return f"line color-{one.place % NUM_COLORS}"
    return f"line color-{one.run % NUM_COLORS}" + (" dashed" if one.place else "")


def move_right(axis: Axis, values: Sequence[float]) -> list[float]:
    """Where values of the x axis lie, in the drawing's units."""
    places = LEFT + axis.place(np.array(values, np.float64)) * (RIGHT - LEFT)
    return [round(place, 1) for place in places.tolist()]


def move_up(axis: Axis, values: Sequence[float]) -> list[float]:
    """Where values of the y axis lie, in the drawing's units."""
    places = BOTTOM - axis.place(np.array(values, np.float64)) * (BOTTOM - TOP)
    return [round(place, 1) for place in places.tolist()]


def text(x: float, y: float, content: str, anchor: str) -> str:
    """A text of the drawing."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{show(content)}</text>'


def show_mark(value: float) -> str:
    """A number short enough for an axis.

    >>> show_mark(1_500_000.0), show_mark(20_000.0), show_mark(0.0005), show_mark(1500.0)
    ('1.5 M', '20 k', '0.0005', '1,500')
    """
    for least, size, letter in (
        (1e12, 1e12, "T"),
        (1e9, 1e9, "G"),
        (1e6, 1e6, "M"),
        (1e4, 1e3, "k"),
    ):
        if abs(value) >= least:
            return f"{value / size:.4g} {letter}"
    return format_number(value)
