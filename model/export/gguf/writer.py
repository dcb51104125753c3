"""GGUF, the file of llama.cpp and of what is built on it, written with the package `gguf`.

llama.cpp turns pairs (x[2i], x[2i + 1]) of a head where the checkpoint turns (x[i], x[i + K/2]), so
rows of queries and keys are sorted anew. A head that is the embedding is not written twice. Rows of
the embedding past the tokenizer's words are left out.

H heads, G of keys and values, K head size, D hidden.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoints.chat_template import hide_generation, read_chat_template
from model.config import ModelConfig
from model.export.gguf.names import EMBEDDING, FACTORS, HEAD, NAMES
from model.export.gguf.runtime import open_llama, open_reader
from model.export.gguf.tokenizer import GgufTokenizer, describe_tokenizer
from model.export.source import Source
from model.rotation import find_frequencies, find_yarn_factor

TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
# The embedding and the head lose most by few bits, and are no large part of a model.
WIDE = "q8_0"
NARROW = ("q5_0", "q5_1", "q4_0", "q4_1")
# Llama's own, which llama.cpp takes for every model of this architecture.
BETAS = (32.0, 1.0)


def write(source: Source, folder: Path, name: str, dtype: str) -> Path:
    """Write the checkpoint as one file; ValueError for a tokenizer or positions GGUF cannot say."""
    import gguf

    path = folder / name
    writer = gguf.GGUFWriter(path, "llama")
    describe_model(writer, source, dtype)
    describe_positions(writer, source.config)
    add_tokenizer(writer, source, describe_tokenizer(source))
    tensors = dict(list_tensors(source))
    kinds = {key: choose_type(gguf, key, tensor, dtype) for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, kinds[key])
        writer.add_tensor_info(
            key, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kinds[key]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for key, tensor in tensors.items():
        data = gguf.quantize(arrange(key, tensor, source.config), kinds[key])
        writer.write_tensor_data(np.ascontiguousarray(data).view(np.uint8))
    writer.close()
    return path


def open_runtime(source: Source, path: Path, dtype: str) -> Any:
    """llama.cpp where it is installed, else the package's own reader and our forward pass."""
    return open_llama(source, path) or open_reader(path)


def describe_model(writer: Any, source: Source, dtype: str) -> None:
    """What the model is: its shape and where it comes from."""
    import gguf

    config = source.config
    writer.add_type("model")
    writer.add_name(source.folder.absolute().name)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.layer_norm_eps)
    writer.add_vocab_size(source.num_words)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    files = gguf.LlamaFileType
    is_plain = dtype == "fp32"
    writer.add_file_type(
        files.ALL_F32 if is_plain else files[f"MOSTLY_{TYPES.get(dtype, dtype.upper())}"]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def describe_positions(writer: Any, config: ModelConfig) -> None:
    """How a stretched context turns positions; ValueError where llama.cpp has no way to say it."""
    import gguf

    if config.rope_type == "dynamic":
        raise ValueError(
            "the checkpoint's rope_type is dynamic, whose angles change with the length of a text; "
            "GGUF has one set of angles"
        )
    if config.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.rope_type == "yarn":
        betas = (config.rope_beta_fast, config.rope_beta_slow)
        if betas != BETAS or not config.rope_truncate:
            raise ValueError(
                f"the checkpoint's yarn has rope_beta_fast and rope_beta_slow {betas}, "
                f"rope_truncate={config.rope_truncate}; llama.cpp has {BETAS} and True for Llama"
            )
        factor = config.rope_factor or 1.0
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(config.rope_original)
        if config.rope_attention_factor is not None:
            # It multiplies what llama.cpp finds by itself.
            writer.add_rope_scaling_attn_factors(
                config.rope_attention_factor / find_yarn_factor(factor)
            )


def add_tokenizer(writer: Any, source: Source, tokenizer: GgufTokenizer) -> None:
    """The tokens, and which of them begin and end a text."""
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.kinds)
    if tokenizer.scores:
        writer.add_token_scores(tokenizer.scores)
    writer.add_token_merges(tokenizer.merges)
    if tokenizer.adds_space is not None:
        writer.add_add_space_prefix(tokenizer.adds_space)
    writer.add_bos_token_id(source.begin)
    writer.add_eos_token_id(source.ends[0])
    if len(source.ends) > 1:
        writer.add_eot_token_id(source.ends[1])
    writer.add_pad_token_id(source.ends[0])
    # As in training: what was not put before a document is not put before a prompt.
    writer.add_add_bos_token(source.adds_begin)
    writer.add_add_eos_token(False)
    template = read_chat_template(source.parts.words)
    if template is not None:
        writer.add_chat_template(hide_generation(template.source))


def list_tensors(source: Source) -> Iterator[tuple[str, Tensor]]:
    """The model's weights by llama.cpp's names, in the order of the file."""
    model, config = source.model, source.config
    yield EMBEDDING, model.model.embed_tokens.weight[: source.num_words]
    for layer, block in enumerate(model.model.layers):
        for ours, theirs in NAMES.items():
            yield f"blk.{layer}.{theirs}.weight", block.get_submodule(ours).weight  # type: ignore[misc]
    yield "output_norm.weight", model.model.norm.weight
    if not config.tie_word_embeddings:
        yield HEAD, model.lm_head.weight[: source.num_words]
    if config.rope_type == "llama3":
        yield FACTORS, find_factors(config)


def find_factors(config: ModelConfig) -> Tensor:
    """By what Llama 3's way divides the frequency of each pair, (K / 2,)."""
    positions = torch.zeros(1, 1, dtype=torch.int64)
    pairs = torch.arange(0, config.head_size, 2, dtype=torch.float32)
    return (
        1.0 / config.rope_theta ** (pairs / config.head_size) / find_frequencies(positions, config)
    )


def choose_type(gguf: Any, name: str, tensor: Tensor, dtype: str) -> Any:
    """How a tensor is kept: vectors in fp32, and in fp16 what has no whole blocks in a row."""
    types = gguf.GGMLQuantizationType
    if tensor.dim() == 1:
        return types.F32
    wanted = WIDE if dtype in NARROW and name in (EMBEDDING, HEAD) else dtype
    kind = types[TYPES.get(wanted, wanted.upper())]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if tensor.shape[1] % block == 0 else types.F16


def arrange(name: str, tensor: Tensor, config: ModelConfig) -> NDArray[np.float32]:
    """A tensor's numbers as llama.cpp wants them: pairs of queries and keys side by side."""
    wide = tensor.detach().float()
    if name.endswith(("attn_q.weight", "attn_k.weight")):
        halves = wide.view(-1, 2, config.head_size // 2, config.hidden_size)
        wide = halves.transpose(1, 2).reshape(wide.shape)
    return wide.contiguous().numpy()
