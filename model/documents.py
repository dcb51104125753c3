"""Documents in a batch of tokens: where each begins, and attention that stays inside each.

A document is what a text is when it is sampled: the token that begins it, its tokens, and, as the
last target, the token that ends it. A set without a begin token begins texts with the end token of
the one before, and so do its documents here. Then no loss depends on two documents: a document's
first token is predicted from the token that begins it alone.

B rows, T tokens of each, N documents in all rows, H heads, G of keys and values, K head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.attention import attend

# Of q (B, H, T, K), k and v (B, G, T, K), and the bounds of documents: (B, H, T, K).
AttendDocuments = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Marks:
    """The tokens by which documents are told apart."""

    # The token after each document, and nowhere inside.
    end_of_text: int
    # Whether another token stands before each; else a document begins with the end of the last one.
    has_begin: bool = False


class Documents(NamedTuple):
    """The documents of a batch, for attention."""

    # (N + 1,) int32: where each begins, counted through the B * T tokens, and the end of all.
    bounds: Tensor
    compute: AttendDocuments

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of q (B, H, T, K) on k, v (B, G, T, K) inside documents, like q."""
        return self.compute(q, k, v, self.bounds)


def find_firsts(tokens: Tensor, marks: Marks) -> Tensor:
    """Which of tokens (B, T) begin a document: (B, T) of bool. Every row begins one.

    Documents that were removed with their places kept are end tokens only: each such run is one.

    >>> find_firsts(torch.tensor([[5, 0, 7, 8, 0, 0, 0, 9]]), Marks(end_of_text=0)).int()
    tensor([[1, 1, 0, 0, 1, 0, 1, 0]], dtype=torch.int32)
    >>> begun = torch.tensor([[5, 0, 1, 8, 0, 0, 0, 1]])  # Each begins with 1.
    >>> find_firsts(begun, Marks(end_of_text=0, has_begin=True)).int()
    tensor([[1, 0, 1, 0, 0, 1, 0, 1]], dtype=torch.int32)
    """
    is_end = tokens == marks.end_of_text
    # Of a run, the first ends a document and the last begins one.
    is_mark = is_end.clone()
    is_mark[:, 1:-1] &= ~(is_end[:, :-2] & is_end[:, 2:])
    is_first = is_mark.roll(1, 1) if marks.has_begin else is_mark
    is_first[:, 0] = True
    return is_first


def count_from_firsts(is_first: Tensor) -> Tensor:
    """The position (B, T) of each token in its document, from 0.

    >>> count_from_firsts(torch.tensor([[True, False, False, True, True, False]]))
    tensor([[0, 1, 2, 0, 0, 1]])
    """
    places = torch.arange(is_first.shape[1], device=is_first.device).expand(is_first.shape)
    return places - (places * is_first).cummax(1).values


def find_bounds(is_first: Tensor) -> Tensor:
    """The `bounds` of a batch's documents. The host waits for the device here.

    >>> find_bounds(torch.tensor([[True, False, True], [True, False, False]]))
    tensor([0, 2, 3, 6], dtype=torch.int32)
    """
    firsts = is_first.flatten().nonzero().squeeze(1)
    return torch.cat((firsts, firsts.new_tensor([is_first.numel()]))).to(torch.int32)


def computes_at_once(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether one call of a flash kernel does all documents: in half precision on newer GPUs.

    Its kernel for documents of any lengths, unlike that for windows, does not pad heads.
    """
    allowed: Any = torch.backends.cuda
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_size % 8 == 0
        and head_size <= 256
        and bool(allowed.flash_sdp_enabled())
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def attend_each(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    """One document after another, by the kernel for windows; no mask is in memory."""
    sizes = bounds.diff().tolist()
    # Split once, so that gradients are put together once, too.
    rows: list[Any] = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # (B * T, H, K)
    parts = [x.split(sizes) for x in rows]  # (n, H, K) each
    found = [
        attend(*(part.transpose(0, 1)[None] for part in document))
        for document in zip(*parts, strict=True)
    ]  # (1, H, n, K) each
    return separate_rows(torch.cat(found, dim=2)[0].transpose(0, 1), len(q))


def attend_at_once(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    """All documents in one call of FlashAttention (2, or 3 where it was chosen)."""
    from torch.nn.attention.varlen import varlen_attn  # With torch's compiler, in seconds.

    num_tokens = q.shape[2]  # The longest that a document can be; the kernel needs no better.
    rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B * T, H, K)
    run: Any = varlen_attn
    y = run(
        *rows,
        bounds,
        bounds,
        num_tokens,
        num_tokens,
        window_size=(-1, 0),  # Causal.
        enable_gqa=k.shape[1] != q.shape[1],
    )
    return separate_rows(y, len(q))


def separate_rows(y: Tensor, num_rows: int) -> Tensor:
    """y (B * T, H, K) of B rows: (B, H, T, K)."""
    return y.view(num_rows, -1, *y.shape[1:]).transpose(1, 2)


class Separation:
    """Whether and how a model keeps the documents of its windows apart."""

    def __init__(self) -> None:
        # None = it does not: a window is one text.
        self.marks: Marks | None = None
        self.attend_each: AttendDocuments = attend_each
        self.is_compiled = False

    def compile(self) -> None:
        """Get ready for blocks that are compiled."""
        self.is_compiled = True
        # Documents have other lengths in each batch, and as a part of a graph would make it anew.
        compiler: Any = torch.compiler
        self.attend_each = compiler.disable(attend_each)

    def find(
        self,
        tokens: Tensor,
        dtype: torch.dtype,
        head_size: int,
        firsts: Tensor | None = None,
    ) -> tuple[Tensor, Documents]:
        """The positions (B, T) of tokens (B, T) in their documents, and the documents.

        `dtype` is that of queries and keys. `firsts` (B, T) says which tokens begin a document;
        without it there must be marks. A row's first token begins one in any case.
        """
        if firsts is None:
            assert self.marks is not None
            is_first = find_firsts(tokens, self.marks)
        else:
            is_first = firsts.clone()
            is_first[:, 0] = True
        bounds = find_bounds(is_first)
        if self.is_compiled:
            torch._dynamo.maybe_mark_dynamic(bounds, 0)  # One graph for any number of documents.
        compute = self.attend_each
        if computes_at_once(tokens.device, dtype, head_size):
            compute = attend_at_once
            import_module("torch.nn.attention.varlen")  # Before blocks look at what to keep of it.
        return count_from_firsts(is_first), Documents(bounds, compute)
