"""The `velocity` command: parse, import what the command needs, one call each.

Nothing heavy is imported before a command runs, so that --help is quick.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prep.command import prep
from prep.foreign.command import import_shards
from shards.commands import app as shards_app
from shards.screen import say

app = typer.Typer(
    name="velocity",
    help="Pretrain a language model: prep the data first, then train, then sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(prep)
app.add_typer(shards_app, name="shards")
shards_app.command("import")(import_shards)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value ...]", help="Settings of the run.")
]


def main() -> None:
    """Run the command; a person's mistake is told in one line."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app(prog_name="velocity")
    except (ValueError, OSError) as error:
        if debug:
            raise
        sys.exit(f"velocity: {describe_error(error)}")


def describe_error(error: Exception) -> str:
    """An error in one line.

    >>> describe_error(FileNotFoundError(2, "No such file or directory", "a.txt"))
    'a.txt: No such file or directory'
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    from shards.disk.durable import advise_writing

    parts = [f"{error.filename}: {error.strerror}" if error.filename else error.strerror]
    return "; ".join([*parts, *filter(None, [advise_writing(error)])])


@app.callback()
def describe_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Pretrain a language model: prep the data first, then train, then sample."""


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("quickstart"),
    overrides: Overrides = None,
) -> None:
    """Prep, train and sample in minutes, on text that is already on this machine."""
    from prep.quickstart import run_quickstart

    run_quickstart(out, overrides or ())


@shards_app.command()
def trace(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
    step: Annotated[int | None, typer.Option(help="Which documents did this step see?")] = None,
    url: Annotated[str | None, typer.Option(help="Which steps saw this document?")] = None,
    doc_hash: Annotated[str | None, typer.Option(help="The same, by the document's hash.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run's checkpoints; default: checkpoints/ if it is there.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="A run's settings, instead of its checkpoints.")
    ] = None,
    ranks: Annotated[int, typer.Option(help="With --config: how many ranks.")] = 1,
    overrides: Overrides = None,
) -> None:
    """Which documents a step's samples came from, and which steps see a document."""
    from shards.reader import open_shards
    from train.tracing import steps as tracing

    if [step, url, doc_hash].count(None) != 2:
        raise ValueError("what is to be traced? give one of --step, --url and --doc-hash")
    shards = open_shards(folder)
    if config or overrides:
        from train.settings import load_config

        tracer = tracing.trace_settings(shards, load_config(config, overrides or ()), ranks)
    else:
        tracer = tracing.trace_run(shards, run or Path("checkpoints"))
    if step is not None:
        lines = tracing.describe_documents(tracer, step)
    else:
        lines = tracing.describe_steps(tracer, url, doc_hash)
    for line in lines:
        typer.echo(line)


@shards_app.command()
def remove(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")] = Path("shards"),
    url: Annotated[
        list[str] | None, typer.Option(help="Its URL, exactly. May be given several times.")
    ] = None,
    url_file: Annotated[Path | None, typer.Option(help="A file with a URL on each line.")] = None,
    doc_hash: Annotated[
        list[str] | None, typer.Option(help="Its hash: every copy of the text.")
    ] = None,
    hash_file: Annotated[Path | None, typer.Option(help="A file with a hash on each line.")] = None,
    keep_places: Annotated[
        bool,
        typer.Option(
            "--keep-places/--cut",
            help="<|endoftext|> in place of the tokens, so that runs can go on; or cut them out.",
        ),
    ] = True,
    run: Annotated[
        Path | None, typer.Option(help="A run's checkpoints; default: checkpoints/ if it is there.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Report, and change nothing.")] = False,
) -> None:
    """Take documents out: a new version of the set, and the steps of a run that saw them."""
    from shards.edit.remove import collect_wanted
    from train.tracing.takedown import Takedown, take_down

    wanted = collect_wanted(url or (), url_file, doc_hash or (), hash_file)
    for line in take_down(Takedown(folder, wanted, keep_places, run, dry_run), say):
        typer.echo(line)


@app.command()
def sample(
    ckpt: Annotated[
        Path, typer.Option(help="A checkpoint, or a folder of them: the newest complete one.")
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="May be given several times. None: the beginning of a document."),
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option(help="A file that is one prompt; - for standard input.")
    ] = None,
    prompt_lines: Annotated[
        str | None, typer.Option(help="A file with a prompt on each line; - for standard input.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a text, its prompt's included. [150]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens behind the prompt; instead of --max-length.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest token each time. [0.8]")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Only the k likeliest tokens; 0 = all. [50]")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Only the likeliest that make up p; 1 = all. [0.9]")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Only those at least p times as likely as the best. [0]")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: tokens that were there are less likely. [1]")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text. May be given several times.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal texts.")] = None,
    num_samples: Annotated[int | None, typer.Option(help="Texts for each prompt. [1]")] = None,
    stream: Annotated[bool, typer.Option(help="Show a single text as it is generated.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. [cuda if any]")] = None,
) -> None:
    """Write text from a checkpoint."""
    from model.decode.console import read_prompts, write_texts
    from model.decode.generator import Settings
    from model.generate import load_generator
    from prep.text.gpt2 import build_gpt2_json

    given: dict[str, Any] = {
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop,
        "seed": seed,
        "num_return_sequences": num_samples,
    }
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    prompts = read_prompts(prompt or (), prompt_file, prompt_lines)
    # A checkpoint brings its tokenizer; those of the original VelocityLM do not, and have GPT-2's.
    generator = load_generator(ckpt, device, tokenizer_json=build_gpt2_json())
    write_texts(generator, prompts, settings, sys.stdout, stream)


@app.command()
def convert(
    ckpt: Annotated[Path, typer.Argument(help="A checkpoint of the original VelocityLM.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Turn a checkpoint of the original VelocityLM into a checkpoint folder of today."""
    from model.checkpoints.original import convert_seed
    from prep.text.gpt2 import build_gpt2_json

    convert_seed(ckpt, out, build_gpt2_json())
    say(f"{out}: converted; try it with: velocity sample --ckpt {out}")


if __name__ == "__main__":
    main()
