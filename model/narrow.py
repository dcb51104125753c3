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
from model.transformer import Transformer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def round_weights(model: Transformer, kept: Kept) -> None:
    """Round the weights of every layer, the embedding and the head to what is to be kept of them.

    Norms stay as they are, and on a CPU are fp32, which says what is computed in. The model only
    predicts from then on.
    """
    is_cpu = model.model.norm.weight.device.type == "cpu"
    is_widened = is_cpu and find_library() is None
    for weight in model.parameters():
        if is_cpu and weight.dim() == 1:
            weight.data = weight.data.float()
    if kept == "int8":
        _use_int8(model, is_widened)
        return
    for weight in model.parameters():
        if weight.dim() == 2:
            rounded = weight.data.to(DTYPES[kept])
            weight.data = rounded.float() if is_widened else rounded


def _use_int8(model: Transformer, is_widened: bool) -> None:
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
        setattr(model.get_submodule(parent), name, kind.of(module.weight))
        module.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    if is_tied and not is_widened:
        rows = model.model.embed_tokens
        assert isinstance(rows, Int8Embedding)
        setattr(model, "lm_head", Int8Linear(rows.weight, rows.weight_scale))  # noqa: B010
