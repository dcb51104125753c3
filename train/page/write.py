"""`velocity report`: one HTML file that needs nothing else, and its drawings as PNGs."""

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from shards.disk.durable import write_file
from train.page.log import RunLog, read_log
from train.page.markup import show
from train.page.panels import Panel, Series, fill_panels
from train.page.pictures import can_draw, draw_png
from train.page.sections import (
    describe_runs,
    draw_figure,
    show_bad_steps,
    show_settings,
    show_spikes,
    show_texts,
)
from train.page.spikes import trace_spikes

PAGE = "report.html"
# Whatever a text may contain: no script runs, and nothing is fetched.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_page(places: Sequence[Path], out: Path | None, shards: Path | None) -> Iterator[str]:
    """Write the page of these runs into `out`, by default beside the first one's log.

    Yields what was written. Raises ValueError for a folder that has no log.
    """
    logs = [read_log(place) for place in places]
    out = logs[0].folder / "report" if out is None else out
    panels = [*fill_panels(logs)]
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / PAGE, make_page(logs, panels, shards))
    yield f"{out / PAGE}: the page of {', '.join(log.name for log in logs)}"
    if not can_draw():
        yield "no PNGs: they need matplotlib; install it with: pip install 'velocitylm[plot]'"
        return
    for panel, series in panels:
        (out / f"{panel.key}.png").write_bytes(draw_png(panel, series, len(logs)))
    yield f"{out}: {len(panels)} PNGs, from {panels[0][0].key}.png to {panels[-1][0].key}.png"


def make_page(
    logs: Sequence[RunLog], panels: Sequence[tuple[Panel, list[Series]]], shards: Path | None
) -> str:
    """The page."""
    style = resources.files("train.page").joinpath("page.css").read_text("utf-8")
    title = f"Velocity: {', '.join(log.name for log in logs)}"
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>',
        f"<title>{show(title)}</title>",
        f"<style>\n{style}</style></head>",
        f"<body><main><h1>{show(title)}</h1>",
        *describe_runs(logs),
        '<h2>Curves</h2>\n<div class="panels">',
        *(draw_figure(panel, series, len(logs)) for panel, series in panels),
        "</div>",
    ]
    for log in logs:
        lines += describe_log(log, shards, f": {log.name}" if len(logs) > 1 else "")
    if settings := [*show_settings(logs)]:
        lines += ["<h2>Settings</h2>", *settings]
    return "\n".join([*lines, "</main></body></html>\n"])


def describe_log(log: RunLog, shards: Path | None, suffix: str) -> Iterator[str]:
    """What is told of each run by itself."""
    if log.texts.by_prompt:
        yield f"<h2>Texts that were written on the way{show(suffix)}</h2>"
        yield from show_texts(log.texts)
    if log.bad_steps:
        yield f"<h2>Bad steps{show(suffix)}</h2>"
        yield from show_bad_steps(log)
    traced = [*trace_spikes(log, shards)]
    if traced:
        yield f"<h2>Documents behind the largest losses{show(suffix)}</h2>"
        yield (
            "<p>A run's largest losses are those of its first steps, so each loss is compared with "
            "the median of those before it; these stand out most. A loss is that of all samples of "
            "a step together: any of its documents may be the reason.</p>"
        )
        yield from show_spikes(log, traced, shards)
