"""Draws the pictures of the docs from a finished quickstart. Needs matplotlib, the extra `plot`.

velocity quickstart
python docs/draw.py quickstart/ docs/
"""

import json
import sys
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

LOSS, STATS = "quickstart-loss.svg", "quickstart-stats.png"
STATS_WIDTH = 1200
# The names of the metrics in metrics.jsonl, and how their curves look.
CURVES: dict[str, dict[str, Any]] = {
    "loss": {"label": "training", "color": BLUE, "lw": 1.5},
    "validation_loss": {"label": "validation", "color": ORANGE, "lw": 1.5, "marker": "o"},
}


def draw_loss(metrics: Path, entropy: float, path: Path) -> None:
    """Both losses by step, beside the entropy that knowing only the frequencies gives."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    # The same run gives the same bytes: no date, no random ids. Text stays text, so it is small.
    settings = choose_style() | {"svg.fonttype": "none", "svg.hashsalt": "velocity"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
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
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def draw_stats(shards: Path, path: Path) -> None:
    """The picture of `velocity shards stats --plot`, smaller and in few colours."""
    plot_stats(measure_set(open_shards(shards)), path)
    with Image.open(path) as image:
        height = image.height * STATS_WIDTH // image.width
        small = image.convert("RGB").resize((STATS_WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(32, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def main() -> None:
    """Draw both pictures."""
    if len(sys.argv) != 3:
        sys.exit("expected: python docs/draw.py QUICKSTART_FOLDER OUTPUT_FOLDER")
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    entropy = measure_unigram_entropy(open_shards(run / "shards"))
    draw_loss(run / "logs" / "metrics.jsonl", entropy, out / LOSS)
    draw_stats(run / "shards", out / STATS)


if __name__ == "__main__":
    main()
