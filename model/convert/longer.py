"""`velocity convert --context`: the same weights in a folder whose config has a longer context."""

import shutil
from pathlib import Path

from model.checkpoints.differences import explaining
from model.checkpoints.folder import encode_json
from model.checkpoints.hugging_face import (
    ORIGINAL,
    QUANTIZATION,
    Json,
    make_rope_json,
    read_config_json,
)
from model.checkpoints.seal import (
    CHECKSUMS,
    CONFIG,
    GENERATION_CONFIG,
    SEED_WEIGHTS,
    TOKENIZER_CONFIG,
    TRAINING_FILES,
    WEIGHTS,
    CheckpointError,
    check_links,
    find_checkpoint,
    is_sealed,
    is_seed_checkpoint,
    read_json,
    read_seal,
    seal,
    verify,
)
from model.checkpoints.weight_files import find_weight_files
from model.config import ModelConfig
from model.convert.older import expect_new
from model.convert.options import Longer
from model.convert.stretch import stretch_context

# What is beside weights and belongs to a model: its tokenizer, templates, licence and card.
SUFFIXES = (".json", ".jinja", ".model", ".txt", ".md", "")
# What says how positions turn, in config.json.
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", ORIGINAL.removeprefix("rope_"))
# What says how long a text may be, beside config.json.
LIMITS = {TOKENIZER_CONFIG: "model_max_length", GENERATION_CONFIG: "max_length"}


def lengthen(path: Path, out: Path, longer: Longer) -> tuple[ModelConfig, ModelConfig]:
    """Write the checkpoint at `path` with a longer context; `out` must be new or empty.

    Weights and tokenizer stay as they are, bit for bit; what a run keeps to go on is left out, as
    it is of another model. A folder of ours is sealed again; one from elsewhere stays one. Returns
    the model's numbers before and after. Raises ValueError, before anything is written, where the
    context cannot be made so.
    """
    assert longer.context is not None
    folder = find_checkpoint(path)
    expect_new(out)
    if is_seed_checkpoint(folder):
        raise CheckpointError(
            f"{folder}: a checkpoint of the original VelocityLM; convert it without --context "
            "first, then convert the result"
        )
    values = read_json(folder / CONFIG)
    with explaining(folder / CONFIG):
        before = read_config_json({k: v for k, v in values.items() if k != QUANTIZATION})
    after = stretch_context(before, longer.context, longer.way, longer.theta)
    names = list_files(folder)
    is_ours = is_sealed(folder)
    if is_ours:
        verify(folder, [name for name in names if name in read_seal(folder)])
    check_links(folder, names)
    changed = {CONFIG: replace_rope(values, after)}
    for name, key in LIMITS.items():
        limits = read_json(folder / name) if name in names else {}
        if limits.get(key) == before.context:
            changed[name] = limits | {key: after.context}
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name in names:
            if name not in changed:
                shutil.copyfile(folder / name, out / name)
        # config.json comes last: without it the folder is no checkpoint.
        for name, content in reversed(changed.items()):
            (out / name).write_bytes(encode_json(content))
        if is_ours:
            seal(out)
    except OSError:  # A full disk: the same command can be run again, in a folder that is empty.
        for path in out.iterdir():
            path.unlink()
        raise
    return before, after


def list_files(folder: Path) -> list[str]:
    """The names of the model's files: one copy of its weights, and what belongs with them."""
    weights = [file.name for file in find_weight_files(folder)]
    beside = [
        file.name
        for file in folder.iterdir()
        if file.is_file()
        and file.suffix in SUFFIXES
        and not file.name.startswith(".")
        and not file.name.endswith(".index.json")
        and file.name not in (CHECKSUMS, *TRAINING_FILES)
    ]
    if weights[0] not in (WEIGHTS, SEED_WEIGHTS):
        whole = WEIGHTS if weights[0].endswith(".safetensors") else SEED_WEIGHTS
        beside.append(f"{whole}.index.json")
    return sorted([*beside, *weights])


def replace_rope(values: Json, config: ModelConfig) -> Json:
    """config.json's values with another RoPE and context; all others as they were."""
    kept = {key: value for key, value in values.items() if key not in ROPE_KEYS}
    return (
        kept | {"max_position_embeddings": config.max_position_embeddings} | make_rope_json(config)
    )


def describe(before: ModelConfig, after: ModelConfig) -> str:
    """What has changed, for people."""
    how = f"rope_theta {before.rope_theta:,.0f} -> {after.rope_theta:,.0f}"
    if after.rope_type != "default":
        how = f"rope_type {after.rope_type}, factor {after.rope_factor:g}"
        if after.rope_type != "linear":
            how += f" from {after.rope_original:,} tokens"
    return f"context {before.context:,} -> {after.context:,}; {how}; the weights are the same"
