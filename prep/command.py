"""`velocity prep`: its options, and what becomes of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.screen import say

if TYPE_CHECKING:
    from prep.request import Request


def prep(
    out: Annotated[
        Path, typer.Option(help="The folder for the shards, or a URL: s3://bucket/prefix, gs://.")
    ],
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
    dedup: Annotated[
        str | None,
        typer.Option(
            help="exact: of documents with the same text keep only the first. --max-documents and "
            "--max-tokens count before copies go."
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="fastokens or tokenizers; default: the fastest installed. Changes no byte."
        ),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(help="Take this share of the source files, the same every time, as 0.01."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one a core. Changes no byte.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: the machines of a Ray cluster. Changes no byte.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(help="The cluster, as head:6379 or auto; default: RAY_ADDRESS, or a new one."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(help="Do only part i of n, as 0/4, beside processes that do the others."),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Check what the parts did, and make it one set.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add these sources to the finished set in --out."),
    ] = False,
    staging: Annotated[
        Path | None,
        typer.Option(
            help="Where the set is made if --out is a URL; default: a folder of its last name here."
        ),
    ] = None,
    compress: Annotated[
        bool, typer.Option("--compress", help="If --out is a URL: store .bin files as .bin.zst.")
    ] = False,
) -> None:
    """Turn documents into token shards, once, offline. The same command again goes on."""
    from prep.request import Policy, Request
    from prep.upload import split_out
    from shards.disk.url import show_url
    from shards.part import parse_part

    url, out = split_out(out, staging, compress)
    policy = Policy(
        text_column=text_column,
        blank_line_documents=blank_line_documents,
        validation_fraction=validation_fraction,
        shard_tokens=shard_tokens,
        max_documents=max_documents,
        max_tokens=max_tokens,
        unit_bytes=unit_bytes,
        sample=sample,
        min_chars=min_chars,
        max_chars=max_chars,
        keep_url=keep_url,
        drop_url=drop_url,
        where=tuple(where or ()),
        dedup=dedup,
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
        workers=workers,
        engine=engine,
        ray_address=ray_address,
        part=parse_part(part) if part else None,
        url=show_url(url) if url else None,
    )
    if finish and part:
        raise ValueError("--finish comes when all parts are done; run it without --part")
    if finish:
        refuse_choices(request)
    if append and (finish or part):
        raise ValueError("--append is no work for --part and --finish; --engine ray shares it")
    try:
        num_tokens = work(request, finish, append, url, compress)
    except KeyboardInterrupt:
        say(f"stopped; what is committed in {out} stays, and the same command goes on from there")
        raise typer.Exit(130) from None
    if num_tokens:
        option = "" if out == Path("shards") else f" data.shards={out}"
        say(f"next: torchrun --nproc_per_node 1 -m train{option}")


def refuse_choices(request: "Request") -> None:
    """ValueError where --finish came with a choice that the parts have made already."""
    from prep.request import Policy, Request

    default = Request(request.out, Policy())
    names = ["inputs", "dataset", "dataset_config", "split", "revision"]
    names += ["encoder", "engine", "ray_address"]
    chosen = [name for name in names if getattr(request, name) != getattr(default, name)]
    policy, usual = request.policy, default.policy
    chosen += [name for name in vars(usual) if getattr(policy, name) != getattr(usual, name)]
    if chosen:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
        raise ValueError(
            f"{options.replace('--inputs', '--input')}: --finish takes the sources and options "
            "that the parts were run with; leave this out"
        )


def work(request: "Request", finish: bool, append: bool, url: str | None, compress: bool) -> int:
    """Do what was asked for: a set, a part of it, its finish, or an addition; and send it.

    Returns the train tokens that are there; 0 where the set is not finished.
    """
    from prep.append import append_sources
    from prep.engines.choose import count_cores
    from prep.gather import finish_parts
    from prep.part import prepare_part
    from prep.run import prepare
    from prep.upload import sending

    in_one_go = not (finish or append or request.part)
    with sending(url, request, say, compress, in_one_go, append):
        if finish:
            workers = request.workers or count_cores()
            manifest = finish_parts(request.out, workers, say, request.place)
        elif append:
            manifest = append_sources(request, say)
        elif request.part:
            prepare_part(request, say)
            return 0
        else:
            manifest = prepare(request, say)
        return manifest.num_tokens("train")
