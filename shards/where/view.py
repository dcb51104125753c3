"""The chosen documents of a split as one stream of tokens, as if the set had no others."""

import numpy as np

from shards.format import Int64
from shards.reader import Shards, TokenStream
from shards.where.choice import Choice
from shards.widths import Tokens

# Pieces of a window are read together where the gap between them is no wider: to read over it costs
# less than another read.
MAX_GAP_BYTES = 1024


class ChosenStream(TokenStream):
    """The chosen tokens of a split, one after another; a window is gathered from its pieces."""

    def __init__(self, stream: TokenStream, choice: Choice) -> None:
        super().__init__(stream.folder, stream.shards, stream.vocab_size, stream.first_reads)
        self.choice = choice
        self.num_tokens = choice.num_tokens

    def _read_windows(self, out: Tokens, starts: Int64) -> None:
        windows, _, lengths, places = self.choice.cut(starts, out.shape[1])
        # What is read at once: pieces of a window, and the gaps between them.
        ends = places + lengths
        is_far = (places[1:] - ends[:-1]) * out.itemsize > MAX_GAP_BYTES
        is_first = np.append(True, is_far | (windows[1:] != windows[:-1]))
        firsts = np.flatnonzero(is_first)
        lasts = np.append(firsts[1:], len(places)) - 1
        bounds = np.append(0, np.cumsum(ends[lasts] - places[firsts]))
        tokens: Tokens = np.empty(bounds[-1], out.dtype)
        self._read_pieces(tokens, bounds, places[firsts])
        # In `out` the pieces lie one after another; each from where it lies in `tokens`.
        reads = np.cumsum(is_first) - 1
        shifts = bounds[reads] + places - places[firsts][reads] - (np.cumsum(lengths) - lengths)
        origins = np.arange(out.size) + np.repeat(shifts, lengths)
        out[:] = tokens[origins].reshape(out.shape)

    def _locate(self, position: int) -> int:
        [(place, _)] = self.choice.spans(position, position + 1)
        return place


def open_view(
    shards: Shards, split: str, choice: Choice, checks_first_reads: bool = False
) -> TokenStream:
    """The stream of what was chosen of a split; where that is all of it, the split's own."""
    stream = shards.stream(split, checks_first_reads)
    return stream if choice.where is None else ChosenStream(stream, choice)
