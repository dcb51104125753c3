"""The `velocity` command: which commands there are, and how what is wrong is told.

A command is a function in the command.py of its room; what it needs beside its options it imports
when it runs, so that --help is quick.
"""

import io
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from model.adapters.command import merge
from model.convert.command import convert
from model.export.command import export
from model.sample.command import chat, sample
from model.serve.command import serve
from prep.command import prep, quickstart
from prep.foreign.command import import_shards
from prep.vocabulary.command import app as tokenizer_app
from shards.commands import app as shards_app
from shards.entry.failure import naming_pipes, prepare_screen, reporting
from shards.entry.options import expect_paths
from shards.entry.unquoted import explain_extra_files
from shards.screen.lines import say, say_text
from train.commands import (
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
from train.evaluation.command import evaluate

app = typer.Typer(
    name="velocity",
    help="Pretrain a language model: prep the data first, then train, then sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# In the order of the help, which is that of the work.
COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "prep": prep,
    "plan": plan,
    "tune-lr": tune_lr,
    "verify-resume": verify_resume,
    "inspect": inspect,
    "report": report,
    "sample": sample,
    "chat": chat,
    "eval": evaluate,
    "serve": serve,
    "merge": merge,
    "convert": convert,
    "export": export,
    "publish": publish,
}
# They are about sets, and need more than sets: what prep reads, or a run.
OF_SETS: dict[str, Callable[..., None]] = {
    "import": import_shards,
    "trace": trace,
    "find": find,
    "remove": remove,
}

for name, command in COMMANDS.items():
    app.command(name)(command)
for name, command in OF_SETS.items():
    shards_app.command(name)(command)
app.add_typer(shards_app, name="shards")
app.add_typer(tokenizer_app, name="tokenizer")
# Not a command, but what many type first.
app.command(hidden=True, context_settings={"ignore_unknown_options": True})(train)
for group in (app, shards_app, tokenizer_app):
    for entry in group.registered_commands:
        assert entry.callback is not None
        entry.callback = naming_pipes(expect_paths(entry.callback))

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


if __name__ == "__main__":
    main()
