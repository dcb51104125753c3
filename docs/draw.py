"""Draws the pictures of the docs: from a finished quickstart, and from benchmarks/results.

Needs matplotlib, the extra `plot`.

velocity quickstart
python docs/draw.py quickstart/ docs/
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from prep.quickstart import measure_unigram_entropy
from shards.inspect.plot import BLUE, INK, ORANGE, choose_style, plot_stats
from shards.inspect.stats import measure_set
from shards.reader import open_shards

ROOT = Path(__file__).parent.parent
LOSS, STATS, LEARNING = "quickstart-loss.svg", "quickstart-stats.png", "learning.svg"
LONGER = "long_context.svg"
STATS_WIDTH = 1200
# The names of the metrics in metrics.jsonl, and how their curves look.
CURVES: dict[str, dict[str, Any]] = {
    "loss": {"label": "training", "color": BLUE, "lw": 1.5},
    "validation_loss": {"label": "validation", "color": ORANGE, "lw": 1.5, "marker": "o"},
}


@contextmanager
def drawing(path: Path) -> Iterator[Figure]:
    """A figure, saved as SVG at the end.

    The same numbers give the same bytes: no date, no random ids. Text stays text, so it is small.
    """
    settings = choose_style() | {"svg.fonttype": "none", "svg.hashsalt": "velocity"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def draw_loss(metrics: Path, entropy: float, path: Path) -> None:
    """Both losses by step, beside the entropy that knowing only the frequencies gives."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    with drawing(path) as figure:
        axes = figure.subplots()
        for name, look in CURVES.items():
            points = [(record["step"], record[name]) for record in records if name in record]
            axes.plot(*zip(*points, strict=True), **look)
        step, loss = points[-1]
        axes.axhline(entropy, color=INK, lw=1, ls="--")
        for text, y, up in (
            (f"unigram entropy {entropy:.2f}", entropy, 5),
            (f"{loss:.2f}", loss, -15),
        ):
            axes.annotate(text, (step, y), (0, up), textcoords="offset points", ha="right")
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats a token")
        axes.set_xlim(0)
        axes.grid()
        axes.legend(frameon=False)


def draw_learning(results: Path, path: Path) -> None:
    """The tuning of every arm, and the losses of the best one with fewer tokens."""
    result = json.loads(results.read_text(encoding="utf-8"))
    whole = result["work"]["steps"]
    with drawing(path) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 4))
        for number, arm in enumerate(result["arms"]):
            points = sorted(
                (trial["rate"], trial["loss"])
                for trial in result["trials"]
                if trial["seed"] == 0
                and (trial["arm"], trial["steps"]) == (arm["arm"], whole)
                and trial["loss"] is not None
            )
            look = {"color": f"C{number}", "label": arm["arm"], "lw": 1.2, "marker": "o", "ms": 3}
            left.plot(*zip(*points, strict=True), **look)
        left.set_xscale("log")
        rates = result["arms"][0]["rates"]
        left.set_xticks(rates, [f"{rate:g}" for rate in rates], fontsize="small", rotation=30)
        left.minorticks_off()
        left.set_xlabel("learning rate")
        left.set_ylabel("loss held out, nats a token")
        left.legend(frameon=False, fontsize="small")
        rows = result["shortened"]
        shares = [row["share"] for row in rows]
        right.plot(shares, [row["mean"] for row in rows], color=BLUE, lw=1.5)
        for row in rows:
            losses = row["losses"]
            right.plot([row["share"]] * len(losses), losses, ".", color=BLUE)
        for key, name in (("tuned", "nanoGPT tuned"), ("shipped", "nanoGPT as shipped")):
            loss = result["factors"][key]["loss"]
            right.axhline(loss, color=INK, lw=1, ls="--")
            at = {"xytext": (0, 4), "textcoords": "offset points", "ha": "right"}
            right.annotate(f"{name}, all tokens: {loss:.2f}", (1, loss), **at)
        right.set_xlabel(f"share of the tokens, {rows[0]['arm']}")
        for axes in (left, right):
            axes.grid()


def draw_longer(results: Path, path: Path) -> None:
    """The loss by position in a context four times as long, before training on and after it."""
    result = json.loads(results.read_text(encoding="utf-8"))
    old, new = result["work"]["contexts"]
    with drawing(path) as figure:
        for axes, when in zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True):
            curves = {way: found[when] for way, found in result["ways"].items()}
            for way, found in (curves | {f"as before, {old} at a time": result["short"]}).items():
                losses = found["loss_by_position"]
                places = [(n + 0.5) * new / len(losses) for n in range(len(losses))]
                look = {"unchanged": {"color": INK, "ls": "--"}}
                look |= {} if way in curves else {way: {"color": INK, "ls": ":"}}
                axes.plot(places, losses, lw=1.3, label=way, **look.get(way, {}))
            axes.axvline(old, color=INK, lw=0.8, alpha=0.5)
            axes.set_xlabel(f"position in the window, {when} training on")
            axes.set_xlim(0, new)
            axes.grid()
            if when == "before":
                axes.set_ylabel("loss held out, nats a token")
            else:
                axes.legend(frameon=False, fontsize="small", loc="upper right")


def draw_stats(shards: Path, path: Path) -> None:
    """The picture of `velocity shards stats --plot`, smaller and in few colours."""
    plot_stats(measure_set(open_shards(shards)), path)
    with Image.open(path) as image:
        height = image.height * STATS_WIDTH // image.width
        small = image.convert("RGB").resize((STATS_WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(32, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def main() -> None:
    """Draw all pictures."""
    if len(sys.argv) != 3:
        sys.exit("expected: python docs/draw.py QUICKSTART_FOLDER OUTPUT_FOLDER")
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    entropy = measure_unigram_entropy(open_shards(run / "shards"))
    draw_loss(run / "logs" / "metrics.jsonl", entropy, out / LOSS)
    draw_stats(run / "shards", out / STATS)
    results = ROOT / "benchmarks" / "results"
    draw_learning(results / "learn.json", out / LEARNING)
    draw_longer(results / "longer.json", out / LONGER)


if __name__ == "__main__":
    main()
