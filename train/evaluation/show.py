"""What was found out, as tables for people."""

from collections.abc import Iterator, Sequence

from shards.disk.json_files import Json
from shards.screen.lines import align, format_plural

SHOWN_SOURCES = 20
HEADER = ("tokens", "loss", "+-", "perplexity", "bits/byte", "+-", "likeliest")
TASK_HEADER = ("task", "items", "acc", "+-", "acc_norm", "+-", "acc_bytes", "+-", "perplexity")


def describe_report(report: Json) -> Iterator[str]:
    """What was found out about one checkpoint, line by line."""
    yield f"checkpoint  {report['checkpoint']}"
    if "loss" in report:
        yield describe_texts(report)
        yield ""
        yield from describe_parts(report)
    if "tasks" in report:
        yield ""
        yield from align_numbers([TASK_HEADER, *list_results(report)])
        yield from describe_cuts(report)
    if "programs" in report:
        yield ""
        yield from describe_programs([report])


def describe_reports(reports: Sequence[Json]) -> Iterator[str]:
    """What was found out about the checkpoints of a run: a row for each."""
    if "loss" in reports[0]:
        yield describe_texts(reports[0])
        yield ""
        rows: list[tuple[str, ...]] = [("step", *HEADER)]
        for report in reports:
            rows.append((f"{report['step']:,}", *make_cells(report)))
            rows += list_clean(report)
        yield from align_numbers(rows)
    if "tasks" in reports[0]:
        yield ""
        rows = [("step", *TASK_HEADER)]
        rows += [(f"{r['step']:,}", *row) for r in reports for row in list_results(r)]
        yield from align_numbers(rows, num_texts=2)
        yield from describe_cuts(reports[0])
    if "programs" in reports[0]:
        yield ""
        yield from describe_programs(reports)


def describe_programs(reports: Sequence[Json]) -> Iterator[str]:
    """What came of programming problems: a row for each checkpoint."""
    found = [report["programs"] for report in reports]
    scores = [
        name for name in found[0] if name.startswith("pass@") and name + "_stderr" in found[0]
    ]
    header = ["problems", "items", "completions"]
    if scores:
        header += ["passed", *(cell for name in scores for cell in (name, "+-"))]
    rows = []
    for each in found:
        row = [each["problems"], f"{each['items']:,}", f"{each['items'] * each['num_samples']:,}"]
        if scores:
            row += [f"{each['passed']:,}", *(c for name in scores for c in share_cells(each, name))]
        rows.append(row)
    if len(reports) > 1:
        header = ["step", *header]
        rows = [[f"{r['step']:,}", *row] for r, row in zip(reports, rows, strict=True)]
    yield from align_numbers([header, *rows], num_texts=2 if len(reports) > 1 else 1)
    if found[0]["without_room"]:
        count = format_plural(found[0]["without_room"], "problem")
        yield f"{found[0]['problems']}: {count} longer than the context; left empty"
    for each in found:
        what = "" if scores else ", and not executed (--execute sandbox)"
        yield f"completions are in {each['samples']}{what}"


def describe_parts(report: Json) -> Iterator[str]:
    """How well a set or texts were predicted: all of it, and its parts."""
    rows: list[tuple[str, ...]] = [("", *HEADER), ("all", *make_cells(report))]
    rows += list_clean(report)
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


def list_clean(report: Json) -> Iterator[tuple[str, ...]]:
    """The row of the tokens that are in no training set, where that is known."""
    if "clean" in report:
        name = f"  without {report['contaminated_tokens']:,} in the training set"
        yield (name, *make_cells(report["clean"]))


def list_results(report: Json) -> Iterator[tuple[str, ...]]:
    """The rows of a checkpoint's tasks, and of their clean items where they are known."""
    for found in report["tasks"]:
        yield (found["task"], *make_task_cells(found))
        if "clean" in found:
            name = f"  without {found['contaminated_items']:,} in the training set"
            yield (name, *make_task_cells(found["clean"]))


def make_task_cells(found: Json) -> tuple[str, ...]:
    """A task's result as the cells of a row."""
    cells = [f"{found['items']:,}"]
    for name in ("acc", "acc_norm", "acc_bytes"):
        cells += share_cells(found, name)
    return (*cells, show_number(found.get("perplexity"), 2))


def share_cells(found: Json, name: str) -> tuple[str, str]:
    """A share with its standard error as the cells of a row."""
    value, error = found.get(name), found.get(f"{name}_stderr")
    return "-" if value is None else f"{value:.2%}", "-" if error is None else f"{error:.2%}"


def describe_cuts(report: Json) -> Iterator[str]:
    """A line for each task of which some items did not fit."""
    for found in report["tasks"]:
        if found["cut_items"]:
            count = format_plural(found["cut_items"], "item")
            yield f"{found['task']}: {count} longer than the context; the beginning was cut off"


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


def align_numbers(rows: Sequence[Sequence[str]], num_texts: int = 1) -> list[str]:
    """A table's rows as lines; all but its first columns are numbers, which end below each other.

    >>> align_numbers([["", "tokens"], ["all", "7"]])
    ['     tokens', 'all       7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][num_texts:]
    return align(
        [
            [*row[:num_texts], *(c.rjust(w) for c, w in zip(row[num_texts:], widths, strict=True))]
            for row in rows
        ]
    )
