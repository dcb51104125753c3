"""The names of what a run is evaluated with on its way, as its log has them, and their words.

sets/NAME/loss    tasks/NAME/acc    and the like; sets/NAME/loss_stderr is a standard error
"""

from collections.abc import Mapping

KINDS = ("sets", "tasks")
STDERR = "_stderr"
# Shares of a task's items.
SCORES = ("acc", "acc_norm", "acc_bytes")
NUMBERS = ("loss", "bits_per_byte", "perplexity", *SCORES)


def split_metric(metric: str) -> tuple[str, str, str] | None:
    """The kind, the name and the number of an evaluation's metric; None for any other.

    >>> split_metric("sets/wiki/loss"), split_metric("loss"), split_metric("sets/wiki/<b>")
    (('sets', 'wiki', 'loss'), None, None)
    """
    kind, name, number = [*metric.split("/"), "", ""][:3]
    is_known = metric.count("/") == 2 and kind in KINDS and number.removesuffix(STDERR) in NUMBERS
    return (kind, name, number) if is_known else None


def is_drawn(metric: str) -> bool:
    """Whether a metric is an evaluation's, and has a curve: a standard error has none."""
    return split_metric(metric) is not None and not metric.endswith(STDERR)


def describe_metrics(metrics: Mapping[str, float | None] | None) -> str:
    """An evaluation on the screen.

    >>> describe_metrics({"loss": 3.25, "loss_stderr": 0.01, "bits_per_byte": None})
    'loss 3.2500 (+- 0.0100)'
    >>> describe_metrics({"acc": 0.5, "acc_stderr": 0.05, "acc_norm": 0.75, "perplexity": 12.5})
    'acc 50.00% (+- 5.00%), acc_norm 75.00%, perplexity 12.50'
    """
    if metrics is None:
        return "its loss is not a number"
    texts = []
    for name, value in metrics.items():
        if value is not None and not name.endswith(STDERR):
            error = metrics.get(name + STDERR)
            spread = "" if error is None else f" (+- {show_number(name, error)})"
            texts.append(f"{name} {show_number(name, value)}{spread}")
    return ", ".join(texts)


def show_number(name: str, value: float) -> str:
    """A metric's value as people read it."""
    if name in SCORES:
        return f"{value:.2%}"
    return f"{value:,.2f}" if name == "perplexity" else f"{value:.4f}"
