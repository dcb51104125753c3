"""The drawings of a page as PNG files, for what shows no HTML. Needs matplotlib."""

import importlib.util
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from shards.inspect.plot import BLUE, ORANGE, choose_style, shorten
from shards.screen.names import escape_line
from train.page.axes import make_value_axis
from train.page.panels import Panel, Series
from train.page.svg import show_mark

COLORS = (BLUE, ORANGE, "#3f8f4f", "#a23b72", "#7a5c9e", "#8c6d31", "#4aa3a2", "#c0392b")


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_png(panel: Panel, series: Sequence[Series], num_runs: int) -> bytes:
    """The drawing as a PNG of 1200 x 750 pixels."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(choose_style()):
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for one in series:
            draw_curve(axes, one, num_runs)
        axis = make_value_axis([one.curve for one in series], panel.is_log)
        axes.set_yscale("log" if axis.is_log else "linear")
        axes.set_yticks(axis.marks)
        axes.minorticks_off()
        axes.set_ylim(axis.low, axis.high)
        axes.set_xlim(0)
        for each in (axes.xaxis, axes.yaxis):
            each.set_major_formatter(lambda value, _: show_mark(value))
        axes.set_title(shorten(escape_line(panel.title)))
        axes.set_xlabel("step")
        axes.set_ylabel(panel.y)
        axes.grid()
        # Given both, or labels that begin with _ would be left out.
        lines = axes.get_lines()
        axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)
        content = BytesIO()
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()


def draw_curve(axes: Any, one: Series, num_runs: int) -> None:
    """One line, as in the page."""
    thin = one.curve.thin()
    color = COLORS[(one.place if num_runs == 1 else one.run) % len(COLORS)]
    look: dict[str, Any] = {"color": color, "lw": 1.5, "label": shorten(escape_line(one.label))}
    if one.place and num_runs > 1:
        look["ls"] = "--"
    if one.place or len(thin.steps) == 1:
        look["marker"] = "o" if len(thin.steps) <= 40 else None
    axes.plot(thin.steps, thin.values, **look)
