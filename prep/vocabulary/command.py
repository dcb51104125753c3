"""`velocity tokenizer ...`: the commands for a tokenizer of one's own."""

import typer

from prep.vocabulary.request import TrainRequest
from shards.entry.options import takes_options
from shards.screen.lines import put, say
from shards.screen.names import quote

app = typer.Typer(help="A tokenizer of your own.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def describe_group() -> None:
    """A tokenizer of your own."""  # With one command, Typer would leave out its name.


@app.command()
@takes_options
def train(request: TrainRequest) -> None:
    """Train a byte-level BPE tokenizer on text, and measure it beside GPT-2's."""
    from prep.vocabulary.report import describe_report
    from prep.vocabulary.run import train_tokenizer

    try:
        report = train_tokenizer(request, say)
    except KeyboardInterrupt:
        say(f"stopped; nothing was written to {request.out}")
        raise typer.Exit(130) from None
    if report is None:
        say(f"{request.out}: is finished, and nothing was left to do; report.json has its figures")
        return
    for line in describe_report(report):
        put(line)
    say(f"next: velocity prep --tokenizer {quote(request.out)} --input ... --out shards/")
