"""The tables of docs/learning.md, from what `python -m benchmarks.learn` printed."""

from pathlib import Path

from benchmarks.measure import Json
from shards.disk.json_files import load_json

RESULTS = Path(__file__).parents[1] / "results" / "learn.json"


def make_tables(path: Path = RESULTS) -> str:
    """All tables, and what follows from them, in Markdown."""
    result: Json = load_json(path)
    lines = [
        describe_size(result),
        "",
        "| recipe | best rate | loss, mean and 95 % interval | CPU s a run |",
        "|---|---|---|---|",
        show_row("nanoGPT as shipped", result["shipped"]),
        *(show_row(arm["title"], arm) for arm in result["arms"]),
        "",
        *tabulate_rates(result),
        "",
        *tabulate_shares(result),
        "",
        *describe_factors(result),
        describe_time(result),
        describe_overlaps(result),
    ]
    return "\n".join(lines)


def describe_size(result: Json) -> str:
    """What was compared, in a sentence."""
    work, blocks = result["work"], result["work"]["block_parameters"]
    return (
        f"{work['trials']} runs, the whole ones of {work['tokens']:,} tokens in {work['steps']} "
        f"steps; {blocks['gpt2']:,} (GPT-2's shape) and {blocks['llama']:,} (Llama's) parameters "
        f"in the blocks; losses in nats a token on {work['held_out_tokens']:,} tokens held out."
    )


def show_row(title: str, row: Json) -> str:
    """A recipe at its best rate."""
    return f"| {title} | {row['rate']:g} | {show_loss(row)} | {row['cpu_seconds']:.0f} |"


def show_loss(row: Json) -> str:
    """The mean loss and its interval.

    >>> show_loss({"mean": 5.0, "interval": [4.95, 5.05]}), show_loss({"mean": None})
    ('5.000 (4.950 to 5.050)', 'diverged')
    """
    if row["mean"] is None:
        return "diverged"
    ends = row["interval"]
    return f"{row['mean']:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def tabulate_rates(result: Json) -> list[str]:
    """The tuning: the loss of the first seed, by recipe and rate."""
    steps = result["work"]["steps"]
    found = {
        (trial["arm"], trial["rate"]): trial["loss"]
        for trial in result["trials"]
        if trial["seed"] == 0 and trial["steps"] == steps
    }
    rates = result["arms"][0]["rates"]
    lines = [
        f"| tuning, first seed | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "|---" * (len(rates) + 1) + "|",
    ]
    for arm in result["arms"]:
        losses = [found[arm["arm"], rate] for rate in rates]
        shown = ["diverged" if loss is None else f"{loss:.3f}" for loss in losses]
        lines.append(f"| {arm['title']} | {' | '.join(shown)} |")
    return lines


def tabulate_shares(result: Json) -> list[str]:
    """Ours with its schedule shortened."""
    rows = result["shortened"]
    lines = [
        f'| share of the tokens, with the recipe that ends with "{find_ours(result)["title"]}" | '
        "loss |",
        "|---|---|",
    ]
    return lines + [f"| {row['share']:g} | {show_loss(row)} |" for row in rows]


def describe_factors(result: Json) -> list[str]:
    """How few tokens reach the baseline's loss: interpolated, and what is claimed."""
    lines = []
    for name, title in (("tuned", "nanoGPT tuned"), ("shipped", "nanoGPT as shipped")):
        factor = result["factors"][name]
        lines.append(
            f"- the loss of {title}, {factor['loss']:.3f}: {show_factor(factor)} times fewer "
            f"tokens by interpolation; {find_claim(result, name)}"
        )
    return lines


def describe_time(result: Json) -> str:
    """What the recipe that was shortened costs a token, in CPU time."""
    first, ours = result["arms"][0], find_ours(result)
    ratio = ours["cpu_seconds"] / first["cpu_seconds"]
    return f"- a token of that recipe takes {ratio:.1f} times the CPU time of nanoGPT's"


def describe_overlaps(result: Json) -> str:
    """Which recipes are not surely better than nanoGPT's, tuned."""
    first, *others = result["arms"]
    names = [
        f'"{arm["title"]}"'
        for arm in others
        if not (arm["interval"] and first["interval"]) or arm["interval"][1] >= first["interval"][0]
    ]
    return (
        f"- recipes whose interval is not below that of nanoGPT tuned: {', '.join(names) or 'none'}"
    )


def find_ours(result: Json) -> Json:
    """The recipe that was shortened."""
    [arm] = [arm for arm in result["arms"] if arm["arm"] == result["shortened"][0]["arm"]]
    return arm


def show_factor(factor: Json) -> str:
    """The mean over the seeds, and the least and the most."""
    if factor["mean"] is None:
        return "? (not reached by all seeds)"
    least, most = min(factor["by_seed"]), max(factor["by_seed"])
    at_least = "at least " if factor["is_at_least"] else ""
    return f"{at_least}{factor['mean']:.2f} ({least:.2f} to {most:.2f} by seed)"


def find_claim(result: Json, name: str) -> str:
    """The shortest run whose interval lies below the baseline's, and does not touch it."""
    [tuned] = [arm for arm in result["arms"] if arm["arm"] == "nanogpt"]
    baseline = tuned if name == "tuned" else result["shipped"]
    below = [
        row["share"]
        for row in result["shortened"]
        if row["interval"] and baseline["interval"] and row["interval"][1] < baseline["interval"][0]
    ]
    if not below:
        return "no run's interval lies below its interval, so nothing is claimed"
    return f"runs of {min(below):g} of the tokens have intervals below its interval"
