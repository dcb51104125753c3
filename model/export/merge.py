"""`velocity merge`: an adapter and its base become a plain folder, which every reader takes.

The folder is compared before it gets its name: it is loaded again, and its logits on some tokens
must be those of the base with the adapter on it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model.adapters.files import load_adapter
from model.adapters.layers import merge_adapter
from model.adapters.parts import Parts, find_parts
from model.checkpoints.folder import (
    encode_json,
    find_stored_dtype,
    load_model,
    name_weights,
    write_weights,
)
from model.checkpoints.seal import (
    CONFIG,
    GENERATION_CONFIG,
    CheckpointError,
    check_links,
    is_sealed,
    read_json,
    seal,
)
from model.checkpoints.weights import deal_weights, make_index
from model.export.place import check_places, making, put
from model.export.source import COPIED
from model.narrow import DTYPES
from model.transformer import Transformer

# Tokens that are compared, and how far the logits may be apart, by their deviation: rounding.
TOKENS = 64
LIMITS = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
# Beside the weights: the tokenizer, and what file systems round up to.
SPARE_BYTES = 64 << 20


def merge(
    adapter: Path, out: Path, base: Path | None, dtype: str | None, say: Callable[[str], None]
) -> str:
    """Write the merged model of an adapter's folder into the new folder `out`; a line about it.

    Raises ValueError if there is something, and CheckpointError for what is no adapter, has no base
    here, or is not for it. Whatever goes wrong, nothing is left at `out`.
    """
    check_places([out], 0)
    parts = find_parts(adapter, base)
    if parts.base is None:
        raise CheckpointError(f"{parts.folder}: a model, not an adapter; there is nothing to merge")
    kept = DTYPES[dtype] if dtype else find_stored_dtype(parts.base) or torch.float32
    model = load_model(parts.base).eval()
    load_adapter(model, parts.folder)
    size = sum(weight.numel() for weight in model.parameters()) * kept.itemsize
    check_places([out], size + SPARE_BYTES)
    tokens = choose_tokens(model.config.num_ids)
    with torch.inference_mode():
        expected = model(tokens)
    merge_adapter(model)
    with making(out) as made:
        write_merged(made, model, parts, kept)
        distance = compare(made, tokens, expected)
        if not distance <= LIMITS[kept]:
            raise ValueError(
                f"{out}: not kept, because its logits differ from those of base and adapter by "
                f"{distance:.3g} standard deviations, expected at most {LIMITS[kept]:g}; the "
                "weights are damaged, or too large for the dtype: try --dtype fp32"
            )
        if is_sealed(parts.words):
            seal(made)
        put([made], [out])
    name = str(kept).removeprefix("torch.")
    return (
        f"{parts.folder} and {parts.base}: merged as {name}; the logits of {TOKENS} tokens differ "
        f"by at most {distance:.1e} standard deviations"
    )


def choose_tokens(num_ids: int) -> Tensor:
    """Tokens (1, TOKENS) from all over a vocabulary, its last ones too: those may be new."""
    spread = torch.arange(TOKENS) * 7919 % num_ids
    spread[1::8] = num_ids - 1 - torch.arange(len(spread[1::8])) % num_ids
    return spread[None]


def write_merged(made: Path, model: Transformer, parts: Parts, kept: torch.dtype) -> None:
    """Write the folder's files; config.json is that of the base, or of the adapter's run."""
    weights = {name: weight.detach().to(kept) for name, weight in name_weights(model).items()}
    files = deal_weights(weights)
    for name, tensors in files.items():
        write_weights(made / name, tensors)
    values = read_json(parts.holder(CONFIG) / CONFIG)
    values |= {"vocab_size": model.config.num_ids}
    values["dtype" if "dtype" in values else "torch_dtype"] = str(kept).removeprefix("torch.")
    (made / CONFIG).write_bytes(encode_json(values))
    for name, content in make_index(files).items():
        (made / name).write_bytes(content)
    for name in COPIED:
        holder = parts.words if name != GENERATION_CONFIG else parts.holder(name)
        if (holder / name).is_file():
            check_links(holder, [name])
            shutil.copyfile(holder / name, made / name)


@torch.inference_mode()
def compare(made: Path, tokens: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, by their deviation, of a folder that is loaded again."""
    found = load_model(made).eval()(tokens)
    return float((found - expected).abs().max() / expected.std())
