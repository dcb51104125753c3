"""The sections of a run's page: the runs, the drawings, texts, documents, settings."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.screen.lines import format_count, format_number, format_plural
from shards.screen.names import quote
from train.page.log import RunLog, Texts
from train.page.markup import fold, make_table, show
from train.page.panels import Panel, Series
from train.page.spikes import Traced
from train.page.svg import draw_svg, look_of
from train.settings import config_to_dict

# Entries of a curve in the table below it, and times at which texts are shown.
SHOWN_VALUES = 12
SHOWN_TIMES = 6
SHOWN_SAMPLES = 16
# Of what is nested in a value of a log.
MAX_DEPTH = 6


def describe_runs(logs: Sequence[RunLog]) -> Iterator[str]:
    """A row for each run: how far it is, and where it stands."""
    head = ["run", "step", "loss", "validation loss", "lowest", "tokens", "parameters", "written"]
    yield make_table(head, [summarize(log) for log in logs])
    for log in logs:
        if log.num_damaged:
            yield (
                f"<p>{show(log.folder)}: passed over "
                f"{format_plural(log.num_damaged, 'damaged line')}, such as the half-written last "
                "one of a run that was killed.</p>"
            )
        if log.earlier:
            names = " ".join(quote(path) for path in log.earlier)
            yield (
                f"<p>Logs of other runs were set aside there; to draw them as well: "
                f"<code>velocity report {show(quote(log.name))} {show(names)}</code></p>"
            )


def summarize(log: RunLog) -> list[object]:
    """A run in a row of numbers; what is not known is left open."""
    validation = log.curves.get("validation_loss")
    config, samples = log.config, log.curves.get("samples")
    tokens = config and samples and samples.values[-1] * config.data.max_seq_length
    losses = log.curves.get("loss")
    return [
        log.name,
        f"{log.last_step:,}" + (f" of {config.training.num_training_steps:,}" if config else ""),
        float(losses.values[-1]) if losses else "",
        float(validation.values[-1]) if validation else "none",
        float(validation.values.min()) if validation else "",
        format_count(tokens) if tokens else "",
        format_count(config.model.num_parameters()) if config else "",
        log.written,
    ]


def draw_figure(panel: Panel, series: Sequence[Series], num_runs: int) -> str:
    """A drawing with its names and, folded, some of its values."""
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 28 10" aria-hidden="true">'
        f'<path class="{look_of(one, num_runs)}" d="M0 5H28"/></svg>{show(one.label)}</span>'
        for one in series
    )
    rows = [
        [one.label, int(step), float(value)]
        for one in series
        for step, value in zip(*vars(one.curve.sample(SHOWN_VALUES)).values(), strict=True)
    ]
    table = make_table(["", "step", panel.y or "value"], rows)
    return "\n".join(
        [
            f"<figure><h3>{show(panel.title)}</h3>",
            draw_svg(panel, series, num_runs),
            f"<figcaption>{keys}</figcaption>",
            fold("Values", table),
            "</figure>",
        ]
    )


def show_texts(texts: Texts) -> Iterator[str]:
    """The texts of a run, by prompt, the newest first."""
    steps = sorted({step for by_step in texts.by_prompt.values() for step in by_step})
    places = np.linspace(0, len(steps) - 1, SHOWN_TIMES).round().astype(np.int64)
    shown = {steps[place] for place in places.tolist()}
    for prompt, by_step in texts.by_prompt.items():
        yield f"<h3>{show(prompt) or '(the beginning of a document)'}</h3>"
        for step in sorted(shown & by_step.keys(), reverse=True):
            yield f"<p>step {step:,}</p><pre><b>{show(prompt)}</b>{show(by_step[step])}</pre>"
    if texts.num_others:
        yield f"<p>{format_plural(texts.num_others, 'more prompt')} in samples.jsonl.</p>"


def show_spikes(log: RunLog, traced: Sequence[Traced], shards: Path | None) -> Iterator[str]:
    """The steps that stand out, each with documents that it saw."""
    folder = f"{quote(shards)} " if shards else ""
    for found in traced:
        spike = found.spike
        yield (
            f"<h3>step {spike.step:,}: loss {format_number(spike.loss)}, "
            f"{format_number(spike.loss - spike.usual)} above the median before</h3>"
        )
        if found.reason:
            yield f"<p>Not traced: {show(found.reason)}.</p>"
            continue
        rows = [
            [
                seen.num_tokens,
                seen.document.source_file,
                seen.document.source_row,
                seen.document.url or "",
                seen.text,
            ]
            for seen in found.seen
        ]
        yield make_table(["tokens", "source", "row", "URL", "text"], rows)
        run = quote(log.output_dir or log.name)
        yield (
            f"<p>{len(rows)} of the {found.num_documents:,} documents that it saw; all of them: "
            f"<code>velocity shards trace {show(folder)}--run {show(run)} "
            f"--step {spike.step}</code></p>"
        )


def show_bad_steps(log: RunLog) -> Iterator[str]:
    """The steps that the run itself found bad, the newest first, and the samples they saw."""
    for record in reversed(log.bad_steps):
        told = {key: value for key, value in record.items() if key not in ("step", "samples")}
        yield f"<h3>step {record['step']:,}</h3>"
        yield make_table([*told], [[show_value(value) for value in told.values()]])
        samples = record.get("samples")
        if isinstance(samples, list) and samples:
            table = show_records(samples[:SHOWN_SAMPLES])
            yield fold(
                f"Its samples, the largest losses first ({len(samples):,} in the log)", table
            )


def show_records(records: Sequence[Any]) -> str:
    """Records of a log as a table, with a column for each of their keys."""
    rows = [record for record in records if isinstance(record, dict)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return make_table(names, [[show_value(row.get(name)) for name in names] for row in rows])


def show_value(value: object, depth: int = MAX_DEPTH) -> object:
    """A value of a log: a number or text as it is, and of all else what is in it, to a depth.

    >>> show_value([{"url": None, "source_file": "a.jsonl", "source_row": 7}, "x"])
    'a.jsonl 7; x'
    """
    if isinstance(value, dict | list) and depth == 0:
        return "..."
    if isinstance(value, dict):
        parts = [part for part in value.values() if part is not None]
        return " ".join(str(show_value(part, depth - 1)) for part in parts)
    if isinstance(value, list):
        return "; ".join(str(show_value(part, depth - 1)) for part in value)
    return "" if value is None else value if isinstance(value, int | float) else str(value)


def show_settings(logs: Sequence[RunLog]) -> Iterator[str]:
    """The settings of the runs side by side; of several runs, first those that differ."""
    trees = [config_to_dict(log.config) if log.config else {} for log in logs]
    names = list(
        dict.fromkeys(
            (section, key) for tree in trees for section, keys in tree.items() for key in keys
        )
    )
    rows = [
        [f"{section}.{key}", *(show_setting(tree.get(section, {}).get(key, "")) for tree in trees)]
        for section, key in names
    ]
    head = ["setting", *(log.name for log in logs)]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    if differing:
        yield make_table(head, differing)
    if rows:
        yield fold("All settings", make_table(head, rows))


def show_setting(value: object) -> str:
    """A setting's value as it is written in a file of settings.

    >>> show_setting(None), show_setting(True), show_setting("fp16"), show_setting(1e-05)
    ('null', 'true', 'fp16', '1e-05')
    """
    return value if isinstance(value, str) else json.dumps(value)
