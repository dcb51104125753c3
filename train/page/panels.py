"""The drawings of a run's page: which metrics each one shows, and how it is called."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from train.page.curves import Curve
from train.page.log import RunLog
from train.reports.evaluations import SCORES, is_drawn, split_metric


@dataclass(frozen=True)
class Panel:
    """A drawing: its file name, what is above it and on its y axis, and the metrics by their names.

    A metric with a * stands for those of all sets, each by its name. Values are divided by `unit`
    before they are shown.
    """

    key: str
    title: str
    metrics: dict[str, str]
    y: str = ""
    unit: float = 1.0
    is_log: bool = False


PANELS = (
    Panel("loss", "Loss", {"loss": "training", "validation_loss": "validation"}, "nats a token"),
    Panel("sets", "Validation loss by set", {"validation_loss/*": "*"}, "nats a token"),
    Panel(
        "accuracies",
        "Pairs whose chosen answer has the higher reward",
        {"rewards/accuracies": "training", "validation_rewards/accuracies": "validation"},
        "%",
        0.01,
    ),
    Panel(
        "margins",
        "Reward of the chosen answer over the rejected one's",
        {"rewards/margins": "training", "validation_rewards/margins": "validation"},
    ),
    Panel(
        "rewards",
        "Rewards of answers",
        {
            "rewards/chosen": "chosen",
            "rewards/rejected": "rejected",
            "validation_rewards/chosen": "chosen, validation",
            "validation_rewards/rejected": "rejected, validation",
        },
    ),
    Panel(
        "logps",
        "Log-probabilities of answers",
        {
            "logps/chosen": "chosen",
            "logps/rejected": "rejected",
            "validation_logps/chosen": "chosen, validation",
            "validation_logps/rejected": "rejected, validation",
        },
    ),
    Panel("z-loss", "z-loss", {"z_loss": "of the log entry's step"}, "beside the loss"),
    Panel("learning-rate", "Learning rate", {"learning_rate": "learning rate"}),
    Panel("norm", "Norm of the gradients", {"grad_norm": "before clipping"}, is_log=True),
    Panel("scale", "Loss scale", {"loss_scale": "FP16's scale"}, is_log=True),
    Panel("skips", "Skipped steps", {"skipped_steps": "skipped", "bad_steps": "bad"}, "so far"),
    Panel("trained", "Tokens trained on", {"trained_share": "of the log entry's step"}, "%", 0.01),
    Panel("activation", "Largest activation", {"largest_activation": "of the log entry's step"}),
    Panel("speed", "Speed", {"tokens_per_second": "all ranks"}, "tokens a second"),
    Panel("mfu", "MFU", {"mfu": "of the peak", "mfu_causal": "causal"}, "%", 0.01),
    Panel("wait", "Waiting for data", {"data_wait_seconds": "between two entries"}, "ms", 1e-3),
    Panel("epochs", "Epochs", {"epoch": "times each token was seen", "epoch/*": "*"}),
    Panel("step", "Time of a step", {"step_seconds": "mean"}, "seconds"),
    Panel("memory", "Memory, highest so far", {"memory_bytes": "first rank"}, "GB", 1e9),
)
# Metrics that serve something other than a drawing.
NOT_DRAWN = ("samples", "largest_loss", "largest_loss_step")


@dataclass(frozen=True)
class Series:
    """A curve of a drawing: of which run, and which of its panel's metrics."""

    curve: Curve
    run: int
    place: int
    label: str


def fill_panels(logs: Sequence[RunLog]) -> Iterator[tuple[Panel, list[Series]]]:
    """The drawings that there is something for, each with its curves."""
    names = {name for log in logs for name in log.curves}
    panels = [replace(panel, metrics=name_sets(panel.metrics, names)) for panel in PANELS]
    evaluated = sorted(name for name in names if split_metric(name))
    listed = {metric for panel in panels for metric in panel.metrics} | set(NOT_DRAWN)
    others = sorted(names - listed - {*evaluated})
    more = [Panel(f"more-{n}", name, {name: name}) for n, name in enumerate(others, start=1)]
    for panel in [panels[0], *make_panels(evaluated), *panels[1:], *more]:
        series = [
            Series(
                divide(log.curves[metric], panel.unit), run, place, name_series(log, logs, label)
            )
            for run, log in enumerate(logs)
            for place, (metric, label) in enumerate(panel.metrics.items())
            if metric in log.curves
        ]
        if series:
            yield panel, series


def name_sets(metrics: Mapping[str, str], there: Collection[str]) -> dict[str, str]:
    """A panel's metrics and their names, with those of the sets that are there in place of a *.

    >>> name_sets({"epoch": "all", "epoch/*": "*"}, ["epoch/web", "epoch/code", "loss"])
    {'epoch': 'all', 'epoch/code': 'code', 'epoch/web': 'web'}
    """
    named: dict[str, str] = {}
    for metric, label in metrics.items():
        if not metric.endswith("/*"):
            named[metric] = label
            continue
        prefix = metric.removesuffix("*")
        named |= {
            name: name.removeprefix(prefix) for name in sorted(there) if name.startswith(prefix)
        }
    return named


def make_panels(metrics: Sequence[str]) -> Iterator[Panel]:
    """The drawings of evaluations: one for each number, in which each set or task has a curve."""
    drawn: dict[tuple[str, str], dict[str, str]] = {}
    for metric in filter(is_drawn, metrics):
        found = split_metric(metric)
        assert found is not None
        kind, name, number = found
        drawn.setdefault((kind, number), {})[metric] = name
    for (kind, number), named in sorted(drawn.items()):
        key, title = f"{kind}-{number.replace('_', '-')}", f"{kind.capitalize()}: {number}"
        if number in SCORES:
            yield Panel(key, title, named, "% right", 0.01)
        else:
            yield Panel(key, title, named, "nats a token" if number == "loss" else "")


def divide(curve: Curve, unit: float) -> Curve:
    """The curve in another unit."""
    return curve if unit == 1 else Curve(curve.steps, curve.values / unit)


def name_series(log: RunLog, logs: Sequence[RunLog], label: str) -> str:
    """What a curve is called: by its metric, and by its run if there are several."""
    return label if len(logs) == 1 else f"{log.name}: {label}"
