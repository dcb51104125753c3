"""The `velocity shards import` command."""

from prep.foreign.request import ImportRequest
from shards.entry.options import takes_options
from shards.screen.lines import say


@takes_options
def import_shards(request: ImportRequest) -> None:
    """Make a set from token files of nanoGPT, llm.c or Megatron."""
    from prep.foreign.run import import_tokens

    import_tokens(request, say)
