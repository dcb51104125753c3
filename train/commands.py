"""The commands about runs, and about runs and sets: `inspect`, `plan`, `report`, `trace`, ..."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from model.checkpoints.hub import fetch
from shards.entry.options import Overrides, takes_options
from shards.screen.lines import format_plural, put, say
from shards.screen.url import read_checkpoint
from train.plan.request import Request
from train.tuning.trials import Parameter


def train(
    words: Annotated[list[str] | None, typer.Argument(help="Options and settings.")] = None,
) -> None:
    """Say how training is started: torchrun does it, as it starts a process for each GPU."""
    command = shlex.join(["torchrun", "--nproc_per_node", "1", "-m", "train", *(words or ())])
    raise ValueError(f"training is started by torchrun: {command}")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run's checkpoints, or its logs; several are drawn over each other."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page. Default: report/ in the first run's log."),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(help="The set's folder, if it is not where the runs found it any more."),
    ] = None,
) -> None:
    """Write a run's page: one HTML file with its curves, texts and documents, and PNGs."""
    from train.page.write import write_page

    for line in write_page(runs, out, shards):
        put(line)


@takes_options
def publish(
    ckpt: Annotated[
        Path, typer.Option(help="A checkpoint, or a folder of them (uses the newest complete one).")
    ],
    repo: Annotated[str, typer.Option(help="USER/NAME on the Hub; it is made if need be.")],
    license: Annotated[
        str, typer.Option(help="The licence you give the model, as the Hub names it: mit, other.")
    ],
    space: Annotated[
        bool, typer.Option("--space", help="A Gradio Space of that name too.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Only you can see them.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write --out, and ask the Hub nothing.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --dry-run: a new folder.")] = None,
) -> None:
    """Put a checkpoint on the Hub, with a card made from its run and its data."""
    from train.publish.publish import Publication, publish

    if dry_run != (out is not None):
        raise ValueError("--dry-run and --out go together: the folder is written, nothing is sent")
    for line in publish(Publication(ckpt, repo, license, space, private), out, say):
        put(line)


def verify_resume(
    config: Annotated[
        str | None, typer.Option(help="The run's settings: a YAML file or a name, as for training.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each of the two runs.")] = 20,
    ranks: Annotated[int, typer.Option(help="Ranks, as in --nproc_per_node.")] = 1,
    out: Annotated[
        Path, typer.Option(help="A new folder for both runs; removed if they end alike.")
    ] = Path("verify-resume"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder.")] = False,
    overrides: Overrides = None,
) -> None:
    """Prove on this machine that a run which is killed goes on bit for bit."""
    from shards.disk.folders import remove as remove_folder
    from train.proof.two_runs import Proof, verify_resume

    for line in verify_resume(Proof(config, overrides or (), steps, ranks, out), say):
        put(line)
    if not keep:
        remove_folder(out)


def tune_lr(
    config: Annotated[
        str | None, typer.Option(help="The run's settings: a YAML file or a name, as for training.")
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="RATE,...",
            help="Rates to begin with, such as 1e-3,2e-3; where the best is the first or last, the "
            "half or the double of it is tried too. Default: half the run's own, it, its double.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of each run, into which its whole schedule goes. Default: a tenth of the "
            "run's, at least 100."
        ),
    ] = None,
    parameter: Annotated[
        Parameter, typer.Option(help="The setting of section training that is tuned.")
    ] = "learning_rate",
    ranks: Annotated[int, typer.Option(help="Ranks, as in --nproc_per_node.")] = 1,
    out: Annotated[
        Path, typer.Option(help="Folder for the runs' logs, tuning.json and tuning.svg.")
    ] = Path("tuning"),
    overrides: Overrides = None,
) -> None:
    """Find the learning rate: short runs at several, with the whole schedule in each."""
    from train.tuning.sweep import Tuning, read_rates, tune

    chosen = () if rates is None else read_rates(rates)
    for line in tune(Tuning(config, overrides or (), chosen, steps, parameter, ranks, out), say):
        put(line)


def trace(
    folder: Annotated[
        Path | None, typer.Argument(help="A set's folder; default: those of the run.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="List the documents this step saw.")] = None,
    url: Annotated[str | None, typer.Option(help="List the steps that saw this document.")] = None,
    doc_hash: Annotated[str | None, typer.Option(help="The same, by the document's hash.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run's checkpoints; default: checkpoints/ if it is there.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="A run's settings, instead of its checkpoints.")
    ] = None,
    ranks: Annotated[int, typer.Option(help="Number of ranks, with --config.")] = 1,
    overrides: Overrides = None,
) -> None:
    """Show which documents a step saw, or which steps saw a document."""
    from train.tracing.describe import describe_documents, describe_steps
    from train.tracing.runs import plan_sets, trace_sets

    if [step, url, doc_hash].count(None) != 2:
        raise ValueError("what should be traced? give exactly one of --step, --url and --doc-hash")
    if config or overrides:
        from train.settings import load_config

        settings = load_config(config, overrides or ())
        tracers = plan_sets(folder, settings, ranks)
    else:
        tracers = trace_sets(folder, run or Path("checkpoints"))
    if step is not None:
        lines = describe_documents(tracers, step)
    else:
        lines = describe_steps(tracers, url, doc_hash)
    for line in lines:
        put(line)


def find(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
    text: Annotated[str | None, typer.Option(help="The text to look for.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="A file with the text, in UTF-8.")] = None,
    min_tokens: Annotated[
        int, typer.Option(help="The tokens of a passage, at least; of a shorter text, all.")
    ] = 8,
    passages: Annotated[int, typer.Option(help="How many passages to list at most.")] = 10,
    places: Annotated[int, typer.Option(help="How many places of each to list at most.")] = 10,
    run: Annotated[
        Path | None, typer.Option(help="A run's checkpoints; default: checkpoints/ if it is there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """List which documents hold passages of a text, and the steps of a run that saw them."""
    import json

    from shards.index.passages import Wish
    from shards.reader import open_shards
    from train.tracing.passages import describe_answer, open_passages, read_text

    wish = Wish(min_tokens, passages, places)
    wanted = read_text(text, text_file)
    answer = open_passages(open_shards(folder), run, say).answer(wanted, wish)
    for line in [json.dumps(answer)] if as_json else describe_answer(answer):
        put(line)


def remove(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
    url: Annotated[
        list[str] | None, typer.Option(help="Exact URL of a document. May be given several times.")
    ] = None,
    url_file: Annotated[Path | None, typer.Option(help="A file with one URL per line.")] = None,
    doc_hash: Annotated[
        list[str] | None, typer.Option(help="Hash of a document; removes every copy of its text.")
    ] = None,
    hash_file: Annotated[Path | None, typer.Option(help="A file with one hash per line.")] = None,
    keep_places: Annotated[
        bool,
        typer.Option(
            "--keep-places/--cut",
            help="Replace the tokens with the end token, so that runs can resume; or cut them out.",
        ),
    ] = True,
    run: Annotated[
        Path | None, typer.Option(help="A run's checkpoints; default: checkpoints/ if it is there.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Report only; change nothing.")] = False,
) -> None:
    """Remove documents in a new version of the set, and list the steps of a run that saw them."""
    from shards.edit.remove import collect_wanted
    from train.tracing.takedown import Takedown, take_down

    wanted = collect_wanted(url or (), url_file, doc_hash or (), hash_file)
    for line in take_down(Takedown(folder, wanted, keep_places, run, dry_run), say):
        put(line)


def inspect(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=read_checkpoint,
            metavar="folder",
            help="A checkpoint, a run's folder, a set, a tokenizer, or hf://user/name.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Say what a folder is, what is missing or damaged in it, and how to use it."""
    import json

    from train.inspect.folders import inspect_folder

    report = inspect_folder(fetch(folder, say))
    for line in [json.dumps(report.json())] if as_json else report.lines():
        put(line)
    if report.problems:
        count = format_plural(len(report.problems), "problem")
        raise ValueError(f"{folder}: {count}; nothing was read but names, sizes and headers")


@takes_options
def plan(request: Request, overrides: Overrides = None) -> None:
    """Say, without a GPU, what a run will need and what fits: memory, days, disk, money."""
    from train.plan.run import run_plan

    for line in run_plan(request, overrides or ()):
        put(line)
