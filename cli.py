"""The `velocity` command: each subcommand parses options, imports what it needs, makes one call.

Nothing heavy is imported before a command runs, so that --help is quick.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from model.decode.settings import Prompts, Settings
from prep.command import prep
from prep.foreign.command import import_shards
from shards.commands import app as shards_app
from shards.options import takes_options
from shards.screen import say
from train.commands import Overrides, remove, trace, train

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
for name, command in (("import", import_shards), ("trace", trace), ("remove", remove)):
    shards_app.command(name)(command)
# Not a command, but what many type first.
app.command(hidden=True, context_settings={"ignore_unknown_options": True})(train)


def main() -> None:
    """Run the command; errors that the user can fix are reported in one line."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app(prog_name="velocity")
    except (ValueError, OSError) as error:
        if debug:
            raise
        sys.exit(f"velocity: {describe_error(error)}")


def describe_error(error: Exception) -> str:
    """The error in one line.

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


@app.command()
@takes_options
def sample(
    ckpt: Annotated[
        Path, typer.Option(help="A checkpoint, or a folder of them (uses the newest complete one).")
    ],
    source: Prompts,
    settings: Settings,
    stream: Annotated[bool, typer.Option(help="Show a single text as it is generated.")] = True,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1. Default: cuda if there is a GPU.")
    ] = None,
) -> None:
    """Generate text from a checkpoint."""
    from model.decode.console import read_prompts, write_texts
    from model.generate import load_generator
    from prep.text.gpt2 import build_gpt2_json

    prompts = read_prompts(source)
    # A checkpoint has its own tokenizer; only the original VelocityLM's lack one, which is GPT-2's.
    generator = load_generator(ckpt, device, tokenizer_json=build_gpt2_json())
    write_texts(generator, prompts, settings, sys.stdout, stream)


@app.command()
def convert(
    ckpt: Annotated[Path, typer.Argument(help="A checkpoint of the original VelocityLM.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Convert a checkpoint of the original VelocityLM to today's format."""
    from model.checkpoints.original import convert_seed
    from prep.text.gpt2 import build_gpt2_json

    convert_seed(ckpt, out, build_gpt2_json())
    say(f"{out}: converted; try it with: velocity sample --ckpt {out}")


if __name__ == "__main__":
    main()
