"""`velocity prep`: its options, and what becomes of them."""

from pathlib import Path
from typing import Annotated

import typer


def prep(
    out: Annotated[Path, typer.Option(help="The folder for the shards.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="Local text instead of the Hub's: a file, folder or glob of .parquet, .jsonl, "
            ".jsonl.gz, .jsonl.zst, .txt. May be given several times.",
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="A dataset of the Hub.")
    ] = "tiiuae/falcon-refinedweb",
    dataset_config: Annotated[
        str | None, typer.Option(help="The dataset's configuration, where it has several.")
    ] = None,
    split: Annotated[str, typer.Option(help="The dataset's split.")] = "train",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; it is pinned to a commit.")
    ] = None,
    text_column: Annotated[
        str, typer.Option(help="The column or JSON key that holds the text.")
    ] = "content",
    blank_line_documents: Annotated[
        bool, typer.Option(help="In .txt files, blank lines separate documents.")
    ] = False,
    validation_fraction: Annotated[
        str, typer.Option(help="Share of the documents that goes to validation.")
    ] = "0.001",
    max_documents: Annotated[int | None, typer.Option(help="Stop after so many documents.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Stop before so many tokens.")] = None,
    shard_tokens: Annotated[
        int, typer.Option(help="Most tokens of a shard; a longer document stays whole.")
    ] = 1 << 28,
    unit_bytes: Annotated[
        int | None,
        typer.Option(help="Source bytes that a worker does at a time; default: by the total."),
    ] = None,
    min_chars: Annotated[
        int | None, typer.Option(help="Drop documents with fewer characters.")
    ] = None,
    max_chars: Annotated[
        int | None, typer.Option(help="Drop documents with more characters.")
    ] = None,
    keep_url: Annotated[
        str | None, typer.Option(help="Keep only documents whose URL has this regular expression.")
    ] = None,
    drop_url: Annotated[
        str | None, typer.Option(help="Drop documents whose URL has this regular expression.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep only documents with such a column, as in language=en or "
            "'language_score>=0.65'. May be given several times."
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="fastokens or tokenizers; default: the fastest installed. Changes no byte."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one a core. Changes no byte.")
    ] = None,
) -> None:
    """Turn documents into token shards, once, offline. The same command again goes on."""
    from prep.plan import Policy
    from prep.run import Request, count_cores, prepare

    policy = Policy(
        text_column=text_column,
        blank_line_documents=blank_line_documents,
        validation_fraction=validation_fraction,
        shard_tokens=shard_tokens,
        max_documents=max_documents,
        max_tokens=max_tokens,
        unit_bytes=unit_bytes,
        min_chars=min_chars,
        max_chars=max_chars,
        keep_url=keep_url,
        drop_url=drop_url,
        where=tuple(where or ()),
    )
    request = Request(
        out=out,
        policy=policy,
        inputs=tuple(inputs or ()),
        dataset=dataset,
        dataset_config=dataset_config,
        split=split,
        revision=revision,
        encoder=encoder,
        workers=count_cores() if workers is None else workers,
    )
    try:
        prepare(request, tell)
    except KeyboardInterrupt:
        tell(f"stopped; what is committed in {out} stays, and the same command goes on from there")
        raise typer.Exit(130) from None
    option = "" if out == Path("shards") else f" data.shards={out}"
    tell(f"next: torchrun --nproc_per_node 1 -m train{option}")


def tell(text: str) -> None:
    """Tell the user something that is not the command's output."""
    typer.echo(text, err=True)
