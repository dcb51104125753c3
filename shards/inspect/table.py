"""A set's counts as tables for the terminal."""

from collections.abc import Iterator

from shards.inspect.lengths import PERCENTILES
from shards.inspect.stats import Amount, Stats
from shards.screen.names import escape_line

BAR_WIDTH = 32
SHOWN_SOURCES = 20


def describe_stats(stats: Stats, top: int) -> Iterator[str]:
    """Everything that was counted, line by line."""
    yield f"dataset_id  {stats.dataset_id}"
    yield ""
    yield from describe_amounts("split", list(stats.splits.items()), stats.total)
    if stats.duplicates is not None:
        copies = stats.duplicates
        yield ""
        yield (
            f"copies: {copies.documents:,} documents ({copies.tokens:,} tokens) repeat one of "
            f"{copies.texts:,} texts exactly"
        )
        if copies.validation_documents_in_train:
            shared = copies.validation_documents_in_train
            yield f"{shared:,} validation documents are also in train"
    if stats.near_duplicates is not None:
        near = stats.near_duplicates
        yield (
            f"near copies: {near.documents:,} documents ({near.tokens:,} tokens, "
            f"{near.tokens / max(stats.total.tokens, 1):.2%}), exact ones included, in "
            f"{near.clusters:,} clusters, the largest of {near.largest:,}"
        )
        if near.validation_documents_near_train:
            shared = near.validation_documents_near_train
            yield f"{shared:,} validation documents are nearly those of train"
    yield ""
    yield from describe_lengths(stats)
    yield ""
    sources = stats.largest_sources()
    shown, rest = sources[:SHOWN_SOURCES], sources[SHOWN_SOURCES:]
    if rest:
        others = Amount()
        for _, amount in rest:
            others.add(amount)
        shown = [*shown, (f"{len(rest):,} more", others)]
    yield from describe_amounts("source", shown, stats.total)
    yield ""
    yield from describe_tokens(stats, top)


def describe_amounts(what: str, amounts: list[tuple[str, Amount]], total: Amount) -> Iterator[str]:
    """Documents, tokens, share of the tokens and bytes per token of each amount."""
    amounts = [(escape_line(name), amount) for name, amount in amounts]
    width = max([len(what), len("all"), *(len(name) for name, _ in amounts)])
    yield f"{what:<{width}} {'documents':>15} {'tokens':>19} {'of tokens':>10} {'bytes/token':>12}"
    rows = amounts if len(amounts) == 1 else [*amounts, ("all", total)]
    for name, amount in rows:
        share = amount.tokens / max(total.tokens, 1)
        yield (
            f"{name:<{width}} {amount.documents:>15,} {amount.tokens:>19,} {share:>10.2%} "
            f"{amount.bytes_per_token:>12.3f}"
        )


def describe_lengths(stats: Stats) -> Iterator[str]:
    """Percentiles, and a histogram in powers of two."""
    lengths = stats.lengths
    if not lengths.num_documents:
        return
    mean = lengths.num_tokens / lengths.num_documents
    end = escape_line(stats.spelling.name(stats.spelling.end_of_text))
    yield f"tokens per document, {end} included: {mean:,.1f} on average"
    marks = [("min", 0.0), *((f"{p:g} %", p) for p in PERCENTILES), ("max", 100.0)]
    values = [f"{lengths.percentile(percent):,}" for _, percent in marks]
    widths = [max(len(name), len(value)) for (name, _), value in zip(marks, values, strict=True)]
    yield "  ".join(f"{name:>{w}}" for (name, _), w in zip(marks, widths, strict=True))
    yield "  ".join(f"{value:>{w}}" for value, w in zip(values, widths, strict=True))
    yield ""
    parts = lengths.histogram()
    most = max(part.documents for part in parts)
    labels = [f"{part.first:,} to {part.last:,}" for part in parts]
    width = max(map(len, labels))
    yield f"{'tokens':<{width}} {'documents':>15} {'of tokens':>10}"
    for label, part in zip(labels, parts, strict=True):
        bar = "#" * round(BAR_WIDTH * part.documents / most)
        share = part.tokens / lengths.num_tokens
        yield f"{label:<{width}} {part.documents:>15,} {share:>10.2%}  {bar}".rstrip()


def describe_tokens(stats: Stats, top: int) -> Iterator[str]:
    """The most frequent tokens, in quotes to show their spaces."""
    used = int((stats.token_counts > 0).sum())
    yield f"{used:,} of {len(stats.token_counts):,} ids occur; the most frequent:"
    for token, count in stats.frequent_tokens(top):
        share = count / max(stats.total.tokens, 1)
        yield f'{token:>6} {count:>19,} {share:>7.2%}  "{stats.spelling.show(token)}"'
