"""The `velocity` command: each subcommand parses options, imports what it needs, makes one call.

Nothing heavy is imported before a command runs, so that --help is quick.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from secrets import randbelow
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.adapters.command import merge
from model.checkpoints.hub import fetch
from model.config import Kept
from model.convert.options import CONVERT_HELP, Longer
from model.decode.settings import Settings
from model.export.request import FormatName, make_request
from model.sample.command import chat
from model.sample.options import (
    CKPT_HELP,
    BaseOption,
    CkptOption,
    DeviceOption,
    DtypeOption,
    Output,
    Prompts,
)
from model.serve.options import Serving
from prep.command import prep
from prep.foreign.command import import_shards
from prep.vocabulary.command import app as tokenizer_app
from shards.commands import app as shards_app
from shards.entry.failure import naming_pipes, prepare_screen, reporting
from shards.entry.options import expect_paths, takes_options
from shards.entry.unquoted import explain_extra_files
from shards.screen.lines import align, open_output, put, say, say_text
from shards.screen.names import quote
from shards.screen.url import read_checkpoint
from train.commands import (
    Overrides,
    find,
    inspect,
    plan,
    publish,
    remove,
    report,
    trace,
    train,
    tune_lr,
    verify_resume,
)
from train.evaluation.request import Request as Evaluation

if TYPE_CHECKING:
    from model.decode.generator import Generator


app = typer.Typer(
    name="velocity",
    help="Pretrain a language model: prep the data first, then train, then sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(prep)
app.command()(report)
app.command()(publish)
app.add_typer(shards_app, name="shards")
app.add_typer(tokenizer_app, name="tokenizer")
app.command()(verify_resume)
app.command()(tune_lr)
for name, command in (
    ("import", import_shards),
    ("trace", trace),
    ("find", find),
    ("remove", remove),
):
    shards_app.command(name)(command)
app.command()(plan)
app.command()(inspect)
app.command()(merge)
# Not a command, but what many type first.
app.command(hidden=True, context_settings={"ignore_unknown_options": True})(train)

# Typer's and Click's errors about the words of a command have this class in common.
WRONG_WORDS = typer.BadParameter.__mro__[2]


def main() -> None:
    """Run the command; errors are reported in one line."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    prepare_screen(sys.argv)
    with reporting(debug):
        code = run()
    sys.exit(code)


def run() -> int:
    """Run the command; its exit code. What is wrong with the words themselves is told here."""
    try:
        return app(prog_name="velocity", standalone_mode=False) or 0
    except typer.Abort:
        say("Aborted!")
        return 1
    except Exception as error:
        if not isinstance(error, WRONG_WORDS):
            raise
        wrong: Any = error
        explained = explain_extra_files(wrong.format_message(), sys.argv)
        if explained:
            raise ValueError(explained) from None
        usage = io.StringIO()
        wrong.show(usage)
        say_text(usage.getvalue())
        return int(wrong.exit_code)


@app.callback()
def describe_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Pretrain a language model: prep the data first, then train, then sample."""


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("quickstart"),
    chat: Annotated[bool, typer.Option("--chat", help="Then teach it to answer.")] = False,
    overrides: Overrides = None,
) -> None:
    """Prep, train and sample in minutes, on text that is already on this machine."""
    from prep.chat_quickstart import run_chat_quickstart
    from prep.quickstart import run_quickstart

    run_quickstart(out, overrides or ())
    if chat:
        run_chat_quickstart(out)


@app.command()
@takes_options
def sample(
    ckpt: CkptOption,
    source: Prompts,
    settings: Settings,
    output: Output,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    base: BaseOption = None,
) -> None:
    """Generate text from a checkpoint; on a terminal and without a prompt, ask for prompts."""
    from model.sample.console import write_texts
    from model.sample.json_lines import write_json
    from model.sample.over_run import write_over_run
    from model.sample.prompts import read_prompts
    from model.sample.repl import Console, Repl, run_repl

    output.check(settings)
    settings = settings.read_escapes()
    if settings.seed is None and (output.all or output.as_json):
        settings = replace(settings, seed=randbelow(2**32))  # Each text can be written again.
    load, ckpt = make_load(device, dtype, base), fetch(ckpt, say)
    asks = source.is_empty and sys.stdin.isatty() and sys.stdout.isatty()
    if asks and not output.all and not output.as_json:
        console = Console(open_output(), say, streams=output.stream)
        run_repl(Repl(load(ckpt), settings, console), "sample")
        return
    prompts, show = read_prompts(source, say), open_output()
    if output.all:
        words, as_json = output.continuation, output.as_json
        write_over_run(ckpt, load, prompts, settings, show, say, words, as_json)
    elif output.as_json:
        write_json(load(ckpt), prompts, settings, show)
    else:
        write_texts(load(ckpt), prompts, settings, show, say, output.stream)


app.command()(chat)


def make_load(
    device: str | None, dtype: Kept | None, base: Path | None = None
) -> "partial[Generator]":
    """What loads a checkpoint as these options say."""
    from model.generate import load_generator
    from prep.tokenizer.gpt2 import build_gpt2_json

    # A checkpoint has its own tokenizer; only the original VelocityLM's lack one, which is GPT-2's.
    tokenizer_json = build_gpt2_json()
    return partial(
        load_generator, device=device, tokenizer_json=tokenizer_json, dtype=dtype, base=base
    )


@app.command("eval")
@takes_options
def evaluate(
    ckpt: CkptOption,
    request: Evaluation,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    base: BaseOption = None,
) -> None:
    """Say how well a checkpoint predicts a set or texts: loss, perplexity, bits per byte."""
    from train.evaluation.run import evaluate

    for line in evaluate(fetch(ckpt, say), request, make_load(device, dtype, base), say):
        put(line)


@app.command()
@takes_options
def serve(
    ckpt: Annotated[
        list[Path],
        typer.Option(
            parser=read_checkpoint,
            metavar="PATH",
            help=f"{CKPT_HELP} May be given several times.",
        ),
    ],
    limits: Serving,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    base: BaseOption = None,
    shards: Annotated[
        Path | None,
        typer.Option(help="The training set, indexed: the page and /v1/trace find texts in it."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="With --shards: the run's checkpoints, for its steps."),
    ] = None,
) -> None:
    """Serve checkpoints over HTTP, with OpenAI's API and a page for people."""
    try:
        from model.serve.server import serve as serve_models
    except ModuleNotFoundError as error:
        raise ValueError(
            f"velocity serve needs {error.name}; install it with: pip install 'velocitylm[serve]'"
        ) from None
    if run is not None and shards is None:
        raise ValueError("--run is for --shards; give both, or neither")
    trace = None if shards is None else open_trace(shards, run)
    serve_models([fetch(p, say) for p in ckpt], limits, make_load(device, dtype, base), trace)


def open_trace(shards: Path, run: Path | None) -> Callable[[str, int, int], dict[str, Any]]:
    """What says where characters of a text are in a set, and at which steps a run saw them."""
    from model.serve.house import TextRefused
    from shards.index.passages import TextTooLong, Wish
    from shards.reader import open_shards
    from train.tracing.passages import open_passages

    passages, wish = open_passages(open_shards(shards), run, say), Wish()

    def trace(text: str, start: int, stop: int) -> dict[str, Any]:
        try:
            return passages.answer(text, wish, start, stop)
        except TextTooLong as error:
            raise TextRefused(str(error)) from None

    return trace


@app.command()
@takes_options
def export(
    ckpt: CkptOption,
    format: Annotated[FormatName, typer.Option(help="What to write.")],
    out: Annotated[Path, typer.Option(help="A new file (gguf, pt2), or a new folder.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The weights. gguf, ollama: fp32, fp16, bf16, q8_0, q5_0, q5_1, q4_0, q4_1; pt2: "
            "fp32, bf16. Default: fp16 for gguf, q8_0 for ollama, fp32 for onnx and pt2."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A text to certify with. Default: Python's documentation."),
    ] = None,
    base: BaseOption = None,
) -> None:
    """Write a checkpoint for another runtime; it is loaded there and compared before it counts."""
    request = make_request(fetch(ckpt, say), format, out, dtype, base and fetch(base, say))
    from model.export.run import export as export_checkpoint
    from model.sample.prompts import read_text
    from prep.python_docs import read_topics

    documentation = "\n\n".join(topic for _, topic in read_topics())
    content = documentation if text is None else read_text(str(text))
    name = "Python's documentation" if text is None else str(text)
    for line in align(export_checkpoint(request, content, name, say)):
        put(line)
    put(f"{out}: done, and certified")


@app.command()
@takes_options
def convert(
    ckpt: Annotated[
        Path, typer.Argument(parser=read_checkpoint, metavar="ckpt", help=CONVERT_HELP)
    ],
    out: Annotated[Path, typer.Argument(metavar="out", help="A new folder.")],
    longer: Longer,
) -> None:
    """Convert an older checkpoint to today's format, or any to a longer context; weights stay."""
    from model.convert.run import run_convert
    from prep.tokenizer.gpt2 import build_gpt2_json

    done = run_convert(fetch(ckpt, say), out, longer, build_gpt2_json())
    say(f"{out}: {done}; try it with: velocity sample --ckpt {quote(out)}")


for group in (app, shards_app, tokenizer_app):
    for entry in group.registered_commands:
        assert entry.callback is not None
        entry.callback = naming_pipes(expect_paths(entry.callback))


if __name__ == "__main__":
    main()
