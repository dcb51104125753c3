"""A GGUF file loaded again: by llama.cpp, or by the package's reader into our forward pass."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.export.certificate import Runtime
from model.export.gguf.names import EMBEDDING, FACTORS, HEAD, NAMES
from model.export.source import Source
from model.export.step import Step, run_in_parts
from model.rotation import find_yarn_factor
from model.transformer import Transformer


def open_llama(source: Source, path: Path) -> Runtime | None:
    """llama.cpp with an fp32 cache, by llama-cpp-python; None where that is not installed.

    ValueError if it reads other tokens from a text than the checkpoint's tokenizer.
    """
    try:
        import llama_cpp
    except (ImportError, OSError):
        return None
    model: Any = llama_cpp.Llama(
        str(path),
        n_ctx=0,
        logits_all=True,
        verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        n_gpu_layers=0,
    )
    for text in ("The quick brown fox.\n\n  x = 12345", "naïve café 北京 🙂 don't"):
        found = model.tokenize(text.encode(), add_bos=source.adds_begin, special=False)
        if found != source.tokenizer.encode(text).ids:
            raise ValueError(f"llama.cpp reads other tokens from {text!r}; please report this")

    def compute(tokens: Tensor) -> Tensor:
        model.reset()
        model.eval(tokens[0].tolist())
        return torch.from_numpy(np.array(model.scores[: tokens.shape[1]]))[None]

    return Runtime(f"llama.cpp, by llama-cpp-python {llama_cpp.__version__}", compute)


def open_reader(path: Path) -> Runtime:
    """The file's keys and tensors, read and widened by `gguf`, in our own forward pass."""
    step = read_model(path)
    config = step.config

    def compute(tokens: Tensor) -> Tensor:
        return run_in_parts(step, tokens, config, torch.float32)

    from importlib.metadata import version

    name = f"the reader of gguf {version('gguf')}, and Velocity's forward pass"
    return Runtime(name, compute, ("llama.cpp was not there to compare with",))


def read_model(path: Path) -> Step:
    """A model of what the file alone says: its shape, its angles and its weights."""
    import gguf

    reader: Any = gguf.GGUFReader(path)
    keys = {key.removeprefix("llama."): field.contents() for key, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        shape = [int(size) for size in reversed(tensor.shape)]
        wide = gguf.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(np.array(wide, dtype=np.float32)).view(shape)

    config = read_config(keys, is_tied=HEAD not in tensors)
    weights = {"model.embed_tokens.weight": read(EMBEDDING)}
    weights["model.norm.weight"] = read("output_norm.weight")
    if HEAD in tensors:
        weights["lm_head.weight"] = read(HEAD)
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            weight = read(f"blk.{layer}.{theirs}.weight")
            if theirs in ("attn_q", "attn_k"):
                pairs = weight.view(-1, config.head_size // 2, 2, config.hidden_size)
                weight = pairs.transpose(1, 2).reshape(weight.shape)
            weights[f"model.layers.{layer}.{ours}.weight"] = weight
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(weights, strict=not config.tie_word_embeddings, assign=True)
    model.tie_head()
    step = Step(model.eval(), config.num_ids)
    if FACTORS in tensors:
        step.frequencies = step.frequencies / read(FACTORS)
    return step


def read_config(keys: dict[str, Any], is_tied: bool) -> ModelConfig:
    """The shape that a file's keys describe."""
    kind = keys.get("rope.scaling.type", "default")
    stretched: dict[str, Any] = {}
    if kind != "default":
        stretched = {"rope_type": kind, "rope_factor": keys["rope.scaling.factor"]}
    if kind == "yarn":
        own = find_yarn_factor(keys["rope.scaling.factor"])
        stretched |= {
            "rope_original_max_position_embeddings": keys["rope.scaling.original_context_length"],
            "rope_attention_factor": own * keys.get("rope.scaling.attn_factor", 1.0),
        }
    return ModelConfig(
        vocab_size=len(keys["tokenizer.ggml.tokens"]),
        hidden_size=keys["embedding_length"],
        num_hidden_layers=keys["block_count"],
        num_attention_heads=keys["attention.head_count"],
        num_key_value_heads=keys["attention.head_count_kv"],
        head_dim=keys["attention.key_length"],
        intermediate_size=keys["feed_forward_length"],
        max_position_embeddings=keys["context_length"],
        layer_norm_eps=keys["attention.layer_norm_rms_epsilon"],
        rope_theta=keys["rope.freq_base"],
        tie_word_embeddings=is_tied,
        **stretched,
    )
