"""`velocity shards ...`: the commands that inspect a set or move it, parsed and called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.screen.lines import put, put_marked, put_text, say
from shards.screen.names import quote

if TYPE_CHECKING:
    from shards.reader import Shards

app = typer.Typer(
    help="Inspect a set, change it, move it.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
) -> None:
    """Print what a set of shards holds."""
    from shards.format import read_manifest
    from shards.inspect.show import describe_set

    for line in describe_set(folder, read_manifest(folder)):
        put(line)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
) -> None:
    """Read everything again; report each damaged file and where it is damaged."""
    from shards.disk.layout import INDEX
    from shards.inspect.verify import verify_shards

    num_files, damaged = 0, []
    for name, fault in verify_shards(folder):
        num_files += 1
        if fault is not None:
            damaged.append(name)
            put(f"{folder / name}: {fault}")
    if damaged:
        of_index = all(name.startswith(f"{INDEX}/") for name in damaged)
        advice = (
            f"only the index is; make what is damaged again with: velocity shards index "
            f"{quote(folder)}"
            if of_index
            else "restore them from a copy, or make the set again in a new folder, with the "
            "command that made it"
        )
        raise ValueError(f"{folder}: {len(damaged)} of {num_files} files are damaged; {advice}")
    put(f"{folder}: {num_files} files are whole")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
    document: Annotated[int | None, typer.Option(help="Its number in the split.")] = None,
    url: Annotated[str | None, typer.Option(help="Its URL.")] = None,
    doc_hash: Annotated[str | None, typer.Option(help="Its hash.")] = None,
    start: Annotated[
        int | None, typer.Option(help="Print tokens instead, from this position in the split.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="With --start: how many tokens.")] = 256,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    copies: Annotated[
        bool,
        typer.Option(
            "--copies",
            help="Print which documents --dedup near dropped, and the one kept for each; with "
            "--url or --doc-hash, those near that one.",
        ),
    ] = False,
    count: Annotated[int, typer.Option(help="With --copies: how many at most.")] = 20,
    loss: Annotated[
        bool,
        typer.Option(
            "--loss", help="Of a set of chats: mark what is trained on, in color or in brackets."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="With --copies or --loss: print JSON, a line for each."),
    ] = False,
) -> None:
    """Print a document, or a window of tokens, as text; or what was dropped as a copy."""
    if copies:
        if document is not None or start is not None or loss:
            raise ValueError(
                "--copies goes with --url or --doc-hash, not with --document, --start or --loss"
            )
        show_copies(folder, url, doc_hash, count, as_json)
        return
    if as_json and not loss:
        raise ValueError("--json is for --copies and --loss; give it with one of them")
    from shards.inspect.show import choose_documents, decode_document, show_window
    from shards.reader import open_shards

    shards = open_shards(folder)
    if start is not None:
        if loss:
            show_loss(shards, split, start, tokens, as_json)
        else:
            put_text(show_window(shards, split, start, tokens))
        return
    for found_split, found in choose_documents(shards, split, document, url, doc_hash):
        say(f"{found_split}, {found}")
        if loss:
            show_loss(shards, found_split, found.start, found.num_tokens, as_json)
        else:
            put_text(decode_document(shards, found_split, found))


def show_loss(shards: "Shards", split: str, start: int, count: int, as_json: bool) -> None:
    """Print tokens of a set of chats, with what is trained on marked."""
    import json

    from shards.inspect.chats import mark_tokens

    found = mark_tokens(shards, split, start, count)
    if as_json:
        put(json.dumps(found.json))
    else:
        put_marked((part.text, part.is_trained, part.is_rejected) for part in found.parts)


def show_copies(
    folder: Path, url: str | None, doc_hash: str | None, count: int, as_json: bool
) -> None:
    """Print which documents were dropped as copies, and the one kept for each."""
    import json

    from shards.format import read_manifest
    from shards.inspect.copies import find_pairs

    for pair in find_pairs(folder, read_manifest(folder), url, doc_hash, count):
        put(json.dumps(pair.json) if as_json else str(pair))


@app.command()
def stats(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
    split: Annotated[str | None, typer.Option(help="Only train, or only validation.")] = None,
    top: Annotated[int, typer.Option(min=0, help="How many frequent tokens to list.")] = 20,
    duplicates: Annotated[bool, typer.Option(help="Count exact copies.")] = True,
    near_duplicates: Annotated[
        bool,
        typer.Option(
            "--near-duplicates", help="Also count near copies, which takes about as long as prep."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw this .png file. Needs velocitylm[plot].")
    ] = None,
) -> None:
    """Count a set's documents, tokens, lengths, frequent tokens and copies."""
    import json

    from shards.inspect.stats import describe_json, measure_set
    from shards.inspect.table import describe_stats
    from shards.reader import open_shards

    if plot is not None:
        from shards.inspect.plot import check_plot, plot_stats

        check_plot(plot)
    counted = measure_set(open_shards(folder), split, duplicates, near_duplicates)
    if plot is not None:
        plot_stats(counted, plot)
    lines = [json.dumps(describe_json(counted, top))] if as_json else describe_stats(counted, top)
    for line in lines:
        put(line)


@app.command()
def count(
    where: Annotated[
        str, typer.Option(help="The condition, as in data.where: 'score >= 3 and url is not None'.")
    ],
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Count the documents and tokens that a condition chooses, by split and by source."""
    import json

    from shards.inspect.count import count_chosen, describe_counted, describe_json
    from shards.reader import open_shards

    counted = count_chosen(open_shards(folder), where)
    for line in [json.dumps(describe_json(counted))] if as_json else describe_counted(counted):
        put(line)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
    workers: Annotated[int, typer.Option(help="Arrays at a time, each on a core.")] = 1,
) -> None:
    """Make a set's index: find says from it where a text is in the set. Run again to resume."""
    from shards.index.build import build_index

    manifest = build_index(folder, say, workers)
    say(f"{folder}: the index of version {manifest.dataset_id[:12]} is complete")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A finished set.")],
    prefix: Annotated[Path, typer.Argument(help="What the new files' names begin with.")],
    format: Annotated[str, typer.Option(help="megatron: PREFIX.bin and PREFIX.idx.")] = "megatron",
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
) -> None:
    """Write a split in the format of another trainer."""
    from shards.exchange.export import export_megatron
    from shards.reader import open_shards

    if format != "megatron":
        raise ValueError(f"--format is {format!r}; expected megatron")
    say(export_megatron(open_shards(folder), split, prefix))


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A finished set.")],
    url: Annotated[str, typer.Argument(help="s3://bucket/prefix, gs://, file://, or a folder.")],
    compress: Annotated[
        bool, typer.Option("--compress", help="Store .bin files as .bin.zst; pull unpacks them.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Files at a time.")] = 8,
    index: Annotated[
        bool, typer.Option("--index", help="Also its index: 4 bytes a token, twice a GPT-2 set.")
    ] = False,
) -> None:
    """Upload a set to object storage. Run the same command again to resume."""
    from shards.exchange.push import push_shards

    push_shards(folder, url, say, compress, workers, index)


@app.command()
def pull(
    url: Annotated[str, typer.Argument(help="s3://bucket/prefix, gs://, file://, or a folder.")],
    folder: Annotated[Path, typer.Argument(help="Where to put the set.")],
    split: Annotated[str | None, typer.Option(help="Only train, or only validation.")] = None,
    part: Annotated[
        str | None, typer.Option(help="i/n: every n-th shard, from number i; 0/4 to 3/4.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Files at a time.")] = 8,
    index: Annotated[
        bool, typer.Option("--index", help="Also its index, as far as it is over these shards.")
    ] = False,
) -> None:
    """Download a set from object storage and verify it. Run the same command again to resume."""
    from shards.disk.part import parse_part
    from shards.exchange.pull import pull_shards

    pull_shards(url, folder, say, split, parse_part(part) if part else None, workers, index)
