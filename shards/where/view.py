"""The chosen documents of a split as one stream of tokens, as if the set had no others."""

import numpy as np

from shards.format import Int64
from shards.reader import Shards, TokenStream
from shards.where.choice import Choice
from shards.widths import Tokens


class ChosenStream(TokenStream):
    """The chosen tokens of a split, one after another; a window is gathered from its pieces."""

    def __init__(self, stream: TokenStream, choice: Choice) -> None:
        super().__init__(stream.folder, stream.shards, stream.vocab_size, stream.first_reads)
        self.choice = choice
        self.num_tokens = choice.num_tokens

    def _cut(self, out: Tokens, starts: Int64) -> tuple[list[memoryview], Int64]:
        space, size = out.view(np.uint8).data.cast("B"), out.itemsize
        windows, offsets, lengths, places = self.choice.cut(starts, out.shape[1])
        begins = (windows * out.shape[1] + offsets) * size
        pairs = zip(begins.tolist(), (begins + lengths * size).tolist(), strict=True)
        return [space[begin:end] for begin, end in pairs], places

    def _locate(self, position: int) -> int:
        [(place, _)] = self.choice.spans(position, position + 1)
        return place


def open_view(
    shards: Shards, split: str, choice: Choice, checks_first_reads: bool = False
) -> TokenStream:
    """The stream of what was chosen of a split; where that is all of it, the split's own."""
    stream = shards.stream(split, checks_first_reads)
    return stream if choice.where is None else ChosenStream(stream, choice)
