"""The `velocity eval` command."""

from model.checkpoints.hub import fetch
from model.sample.options import CkptOption, Loading
from shards.entry.options import takes_options
from shards.screen.lines import put, say
from train.evaluation.request import Request


@takes_options
def evaluate(ckpt: CkptOption, request: Request, loading: Loading) -> None:
    """Say how well a checkpoint predicts a set or texts: loss, perplexity, bits per byte."""
    from train.evaluation.run import evaluate

    for line in evaluate(fetch(ckpt, say), request, loading.make_load(), say):
        put(line)
