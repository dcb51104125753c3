"""`velocity shards import`: what its options ask for."""

from prep.foreign.request import ImportRequest
from shards.options import takes_options
from shards.screen import say


@takes_options
def import_shards(request: ImportRequest) -> None:
    """Make a set of GPT-2 tokens from nanoGPT, llm.c or Megatron."""
    from prep.foreign.run import import_tokens

    import_tokens(request, say)
