"""What was found out, as tables for people."""

from collections.abc import Iterator, Sequence

from shards.disk.json_files import Json
from shards.screen.lines import align, format_plural

SHOWN_SOURCES = 20
HEADER = ("tokens", "loss", "+-", "perplexity", "bits/byte", "+-", "likeliest")


def describe_report(report: Json) -> Iterator[str]:
    """What was found out about one checkpoint, line by line."""
    yield f"checkpoint  {report['checkpoint']}"
    yield describe_texts(report)
    yield ""
    rows: list[tuple[str, ...]] = [("", *HEADER), ("all", *make_cells(report))]
    sources = report["by_source"]
    if len(sources) > 1:
        rows += [(f"source {p['source']}", *make_cells(p)) for p in sources[:SHOWN_SOURCES]]
    rows += [
        (f"from position {part['first_position']:,}", *make_cells(part))
        for part in report["by_position"]
        if part["tokens"]
    ]
    yield from align_numbers(rows)
    if len(sources) > SHOWN_SOURCES:
        yield f"and {len(sources) - SHOWN_SOURCES:,} sources more, which --json lists"


def describe_reports(reports: Sequence[Json]) -> Iterator[str]:
    """What was found out about the checkpoints of a run: a row for each."""
    yield describe_texts(reports[0])
    yield ""
    rows: list[tuple[str, ...]] = [("step", *HEADER)]
    rows += [(f"{report['step']:,}", *make_cells(report)) for report in reports]
    yield from align_numbers(rows)


def describe_texts(report: Json) -> str:
    """What was predicted, on one line."""
    if "split" in report:
        what = f"{report['split']} of {report['shards']} ({report['dataset_id'][:12]})"
    else:
        what = ", ".join(report["text"])
    stride = "" if report["stride"] == report["length"] else f", every {report['stride']:,}"
    windows = format_plural(report["windows"], "window")
    return f"predicted   {what}: {windows} of {report['length']:,} tokens{stride}; +- by window"


def make_cells(found: Json) -> tuple[str, ...]:
    """An estimate as the cells of a row."""
    accuracy = found["accuracy"]
    return (
        f"{found['tokens']:,}",
        show_number(found["loss"], 4),
        show_number(found["loss_stderr"], 4),
        show_number(found["perplexity"], 2),
        show_number(found["bits_per_byte"], 4),
        show_number(found["bits_per_byte_stderr"], 4),
        "" if accuracy is None else f"{accuracy:.1%}",
    )


def show_number(value: float | None, digits: int) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def align_numbers(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's rows as lines; all but the first column are numbers, and end where others do."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return align(
        [[row[0], *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows]
    )
