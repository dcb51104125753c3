"""A set's counts as a picture: lengths, sources, frequent tokens. Needs matplotlib."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from shards.inspect.stats import Stats

INK = "#22313f"
BLUE = "#3b6ea5"
ORANGE = "#d9822b"
PALE = "#e6e9ed"
SHOWN_SOURCES = 12
SHOWN_TOKENS = 20
LABEL_CHARACTERS = 28
# Always leave room for this many bars, so that one or two do not fill a drawing.
MIN_BARS = 8
# Bins of the length histogram per power of two.
BINS_PER_DOUBLING = 4


def check_plot(path: Path) -> None:
    """ValueError if no picture can be drawn to `path`; raised before the long count."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot {path}: expected a file name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"--plot {path}: there is no folder {path.absolute().parent}; make it first"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib; install it with: pip install 'velocitylm[plot]'")


def plot_stats(stats: Stats, path: Path) -> None:
    """Draw the counts to a PNG file; ValueError if there is nothing to draw."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not stats.lengths.num_documents:
        raise ValueError(f"--plot {path}: there are no documents to draw")
    with matplotlib.rc_context(choose_style()):
        figure = Figure(figsize=(12, 9), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2)
        total = stats.total
        figure.suptitle(
            f"{total.tokens:,} tokens in {total.documents:,} documents, "
            f"{total.bytes_per_token:.2f} bytes of text per token",
            fontsize=14,
            fontweight="bold",
            color=INK,
        )
        draw_lengths(axes[0, 0], stats)
        draw_shares(axes[0, 1], stats)
        draw_sources(axes[1, 0], stats)
        draw_tokens(axes[1, 1], stats)
        figure.savefig(path, dpi=150, metadata={"Title": f"velocity shards {stats.dataset_id}"})


def choose_style() -> Any:
    """The matplotlib settings that all four drawings share."""
    return {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.titlecolor": INK,
        "axes.axisbelow": True,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": PALE,
        "font.size": 10,
        "text.parse_math": False,
        "figure.constrained_layout.h_pad": 0.12,
        "figure.constrained_layout.w_pad": 0.12,
    }


def draw_lengths(axes: Any, stats: Stats) -> None:
    """A histogram of document lengths, with the median."""
    lengths = stats.lengths
    low, high = np.log2(lengths.values[[0, -1]])
    first = np.floor(low * BINS_PER_DOUBLING)
    last = max(np.ceil(high * BINS_PER_DOUBLING), first + 1) + 1
    # Lengths are integers: edges are halfway between them, so that every bin has room for one.
    edges = np.unique(np.floor(2 ** (np.arange(first, last + 1) / BINS_PER_DOUBLING)) + 0.5)
    edges = np.concatenate([[min(edges[0], lengths.values[0] - 0.5)], edges])
    counts, edges = np.histogram(lengths.values, np.unique(edges), weights=lengths.documents)
    axes.bar(
        edges[:-1], counts, np.diff(edges), align="edge", color=BLUE, edgecolor="white", lw=0.4
    )
    axes.set_xscale("log", base=2)
    median = lengths.percentile(50)
    axes.axvline(median, color=ORANGE, lw=1.5)
    axes.annotate(
        f"median {median:,}",
        (median, 1),
        (4, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        color=ORANGE,
    )
    mark_lengths(axes)
    axes.set_title("Document lengths")
    axes.set_ylabel("documents")
    axes.yaxis.set_major_formatter(format_amount)
    axes.grid(axis="y")


def draw_shares(axes: Any, stats: Stats) -> None:
    """The share of documents, and of tokens, in documents up to each length."""
    lengths = stats.lengths
    for weights, name, color in (
        (lengths.documents, "of the documents", BLUE),
        (lengths.documents * lengths.values, "of the tokens", ORANGE),
    ):
        shares = np.cumsum(weights) / weights.sum()
        axes.step(lengths.values, shares, where="post", color=color, lw=2, label=name)
    axes.set_xscale("log", base=2)
    mark_lengths(axes)
    axes.set_title("Share in documents up to each length")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="both")
    axes.legend(frameon=False, loc="upper left")


def draw_sources(axes: Any, stats: Stats) -> None:
    """The tokens of the largest sources, and of all the others together."""
    sources = stats.largest_sources()
    bars = [(name, amount.tokens) for name, amount in sources[:SHOWN_SOURCES]]
    rest = sources[SHOWN_SOURCES:]
    if rest:
        bars.append((f"{len(rest):,} more", sum(amount.tokens for _, amount in rest)))
    names = [shorten(name) for name, _ in bars]
    colors = [BLUE] * min(len(sources), SHOWN_SOURCES) + [PALE] * bool(rest)
    draw_bars(axes, names, [tokens for _, tokens in bars], colors)
    axes.set_title("Tokens by source")


def draw_tokens(axes: Any, stats: Stats) -> None:
    """The most frequent tokens, as escaped text."""
    frequent = stats.frequent_tokens(SHOWN_TOKENS)
    names = [f'"{shorten(stats.spelling.show(token))}"' for token, _ in frequent]
    draw_bars(axes, names, [count for _, count in frequent], [BLUE] * len(frequent))
    axes.set_title("Most frequent tokens")


def draw_bars(axes: Any, names: list[str], amounts: list[int], colors: list[str]) -> None:
    """Horizontal bars, the first on top."""
    places = range(len(names))
    axes.barh(places, amounts, color=colors)
    axes.set_yticks(places, names)
    axes.set_ylim(max(len(names), MIN_BARS) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(format_amount)
    axes.grid(axis="x")
    axes.set_xlabel("tokens")


def mark_lengths(axes: Any) -> None:
    """Label the length axis, with plain numbers."""
    axes.xaxis.set_major_formatter(format_amount)
    axes.set_xlabel("tokens per document")


def format_amount(value: float, _: object = None) -> str:
    """A number short enough for an axis.

    >>> format_amount(1_500_000), format_amount(2048), format_amount(0.5)
    ('1.5M', '2,048', '0.5')
    """
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def shorten(text: str) -> str:
    """The end of a label, in characters that every font has.

    >>> shorten("a/very/long/path/of/a/source/file.parquet")
    '...h/of/a/source/file.parquet'
    """
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    if len(text) <= LABEL_CHARACTERS:
        return text
    return "..." + text[3 - LABEL_CHARACTERS - 1 :]
