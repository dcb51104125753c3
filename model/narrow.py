"""How a model's weights are kept to write texts with: rounded to fewer bits, which is less to read.

A text grows by a token each time all weights have been read, so that half the bytes are half the
time. A CPU computes in fp32 whatever is kept: model/step.c widens weights in registers. Without
it, narrow weights would only cost time there, and are rounded but kept as fp32.
"""

import torch
from torch import nn

from model.compiled import find_library
from model.config import Kept
from model.int8 import Int8Embedding, Int8Linear, dequantize, quantize
from model.pages import Pages
from model.transformer import Linear, Transformer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def round_weights(model: Transformer, kept: Kept) -> None:
    """Round the weights of every layer, the embedding and the head to what is to be kept of them.

    Norms stay as they are, and on a CPU are fp32, which says what is computed in. The model only
    predicts from then on.
    """
    is_cpu = model.model.norm.weight.device.type == "cpu"
    is_widened = is_cpu and find_library() is None
    pages = Pages()
    for weight in model.parameters():
        if is_cpu and weight.dim() == 1:
            weight.data = weight.data.float()
    if kept == "int8":
        _use_int8(model, is_widened, pages)
        return
    dtype = DTYPES[kept]
    for weight in model.parameters():
        if weight.dim() == 2 and is_widened:
            weight.data = weight.data.to(dtype).float()
        elif weight.dim() == 2 and weight.dtype != dtype:
            weight.data = pages.empty(weight.shape, dtype, weight.device).copy_(weight.data)


def widen_layers(model: Transformer) -> None:
    """Where model/step.c cannot be used on a CPU, layers that are int8 become fp32, once.

    Torch would widen them at every token, which takes several times as long as reading them.
    """
    if model.model.norm.weight.device.type != "cpu" or find_library() is not None:
        return
    pages = Pages()
    for path, module in [*model.named_modules()]:
        if isinstance(module, Int8Linear):
            parent, _, name = path.rpartition(".")
            with torch.device("meta"):
                layer = Linear(module.weight.shape[1], module.weight.shape[0])
            wide = pages.empty(module.weight.shape, torch.float32)
            wide.copy_(module.weight).mul_(module.weight_scale[:, None])
            layer.weight = nn.Parameter(wide, requires_grad=False)
            setattr(model.get_submodule(parent), name, layer)


def _use_int8(model: Transformer, is_widened: bool, pages: Pages) -> None:
    """Replace what holds a weight by what holds int8 rows, one after another."""
    is_tied = model.config.tie_word_embeddings
    for path, module in [*model.named_modules()]:
        if not isinstance(module, nn.Linear | nn.Embedding) or (is_tied and path == "lm_head"):
            continue
        if is_widened:
            module.weight.data = dequantize(*quantize(module.weight), module.weight.dtype)
            continue
        kind = Int8Linear if isinstance(module, nn.Linear) else Int8Embedding
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, kind.of(module.weight, pages))
        module.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    if is_tied and not is_widened:
        rows = model.model.embed_tokens
        assert isinstance(rows, Int8Embedding)
        setattr(model, "lm_head", Int8Linear(rows.weight, rows.weight_scale))  # noqa: B010
