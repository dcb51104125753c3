"""A model's folder: of a run, from elsewhere, or of the original VelocityLM."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from model.adapters.base import read_base
from model.adapters.peft_config import read_peft_config
from model.checkpoints.differences import DifferentError, explaining
from model.checkpoints.hugging_face import QUANTIZATION, read_config_json
from model.checkpoints.seal import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CHECKSUMS,
    CONFIG,
    SEED_WEIGHTS,
    TOKENIZER,
    TRAINING_FILES,
    WEIGHTS,
    CheckpointError,
    is_adapter,
    is_sealed,
    list_checkpoints,
    read_json,
    read_seal,
    step_of,
    verify,
)
from model.config import ModelConfig
from shards.disk.json_files import Json
from shards.screen.lines import format_bytes, format_plural
from shards.screen.names import quote
from train.checkpoints.position import (
    BEGAN_WITH,
    RUN_CONFIG,
    TRAINING_STATE,
    Position,
    parse_position,
)
from train.inspect.report import Report
from train.inspect.tokenizer_file import describe_tokenizer
from train.inspect.uses import list_model_uses, load_in_python
from train.inspect.weights import WeightFiles, find_weights

# As model/checkpoints/int8.py has it, which needs torch.
INT8_FORMAT = "pack-quantized"


def inspect_model(folder: Path) -> Report:
    """Report on a folder with a config.json, or with what a run puts beside it."""
    report = Report(folder, "model folder from elsewhere")
    has_config = (folder / CONFIG).is_file() or not is_adapter(folder)
    values = _read(folder / CONFIG, report) if has_config else {}
    is_original = (folder / SEED_WEIGHTS).is_file() and "model" in values
    if is_original:
        report.kind = "checkpoint of the original VelocityLM"
    elif is_sealed(folder):
        report.kind = "sealed checkpoint"
        _check_seal(folder, report)
    elif any((folder / name).exists() for name in TRAINING_FILES):
        report.kind = "unfinished checkpoint of a run"
        report.problems.append(
            f"no {CHECKSUMS}: it was not written, or not removed, to the end; nothing reads it"
        )
    _describe_training(folder, report)
    config = _describe_model(values.get("model", {}) if is_original else values, report)
    if is_adapter(folder):
        _describe_adapter(folder, report)
    else:
        _describe_weights(find_weights(folder), config, report)
    if (folder / TOKENIZER).is_file():
        describe_tokenizer(folder / TOKENIZER, report)
        _compare_ids(config, report)
    elif is_original:
        report.facts["tokenizer"] = "none of its own: GPT-2's"
    elif not is_adapter(folder):  # Which may have its base's.
        report.problems.append(f"no {TOKENIZER}: texts cannot be read or written")
    report.use = list_uses(folder, report, is_original)
    return report


def list_uses(folder: Path, report: Report, is_original: bool) -> list[str]:
    """The commands that take a model folder; of one that is unfinished, those of its run."""
    if report.kind.startswith("unfinished"):
        has_others = bool(list_checkpoints(folder.parent))
        return [f"velocity sample --ckpt {quote(folder.parent)}"] if has_others else []
    if report.problems:
        return []
    is_wide = "kept as" not in report.facts
    if is_adapter(folder):
        named = "" if "base" in report.facts else " --base MODEL"
        commands = list_model_uses(folder)
        return [
            f"{command}{named}" for command in (*commands, f"velocity merge {quote(folder)} NEW")
        ]
    uses = list_model_uses(folder, exports=is_wide and not is_original)
    if is_original:
        return [*uses, f"velocity convert {quote(folder)} NEW"]
    return [*uses, load_in_python(folder)]


def _read(path: Path, report: Report) -> Json:
    try:
        return read_json(path)
    except CheckpointError as error:
        report.problems.append(str(error).removeprefix(f"{path.parent}/"))
        return {}


def _check_seal(folder: Path, report: Report) -> None:
    """Compare the sizes of all files with the seal; sha256s are compared when they are read."""
    report.problems += find_seal_faults(folder)
    with suppress(CheckpointError):  # Which is among the faults.
        num_files = len(read_seal(folder))
        report.facts["sealed"] = f"{format_plural(num_files, 'file')} with sizes and sha256s"


def find_seal_faults(folder: Path) -> Iterator[str]:
    """The files of a sealed folder that are missing or of another size, or what its seal lacks."""
    try:
        names = read_seal(folder)
    except CheckpointError as error:
        yield str(error).removeprefix(f"{folder}/")
        return
    for name in names:
        try:
            verify(folder, [name], unread=[name])
        except CheckpointError as error:
            yield str(error).removeprefix(f"{folder}/")


def _describe_training(folder: Path, report: Report) -> None:
    """Where the run was, if the folder has its state."""
    step = step_of(folder)
    if (folder / TRAINING_STATE).is_file():
        state = _read(folder / TRAINING_STATE, report)
        try:
            position = parse_position(state)
        except (KeyError, TypeError):
            report.problems.append(f"{TRAINING_STATE}: not the state of a run")
            return
        report.facts["step"] = f"{position.step:,}, after {position.samples_consumed:,} samples"
        report.facts["set"] = describe_sets(position)
        if began := state.get(BEGAN_WITH):
            report.facts["began with"] = (
                f"{began['folder']} (weights: sha256 {began['weights_sha256'][:12]})"
            )
    elif step is not None:
        report.facts["step"] = f"{step:,}, by its name"
    if (folder / RUN_CONFIG).is_file():
        data = _read(folder / RUN_CONFIG, report).get("data")
        if isinstance(data, dict) and data.get("attention") == "document":
            report.facts["attention"] = "was trained inside documents (data.attention=document)"


def describe_sets(position: Position) -> str:
    """What a run has read: the sets' ids and conditions; of several, how many samples of each."""
    names = [
        f"dataset_id {found.dataset_id}" + ("" if found.where is None else f" where {found.where}")
        for found in position.sets
    ]
    if len(names) == 1:
        return names[0]
    counts = position.mixture.count(position.samples_consumed).tolist()
    return ", ".join(f"{n:,} samples of {name}" for n, name in zip(counts, names, strict=True))


def _describe_model(values: Json, report: Report) -> ModelConfig | None:
    """The architecture, if it is one that velocity computes."""
    if not values:
        return None
    found = values.get(QUANTIZATION)
    if isinstance(found, dict) and found.get("format") == INT8_FORMAT:
        values = {key: value for key, value in values.items() if key != QUANTIZATION}
        report.facts["kept as"] = f"int8 ({found.get('quant_method')}, {INT8_FORMAT})"
    try:
        known = {name: values[name] for name in ModelConfig.__match_args__ if name in values}
        is_section = report.kind.endswith("VelocityLM")
        config = ModelConfig(**known) if is_section else read_config_json(values)
    except DifferentError as error:
        report.problems += [f"{CONFIG}: {difference.line}" for difference in error.differences]
        return None
    except (TypeError, ValueError) as error:
        report.problems.append(f"{CONFIG}: {error}")
        return None
    heads = f"{config.num_attention_heads} heads"
    if config.num_key_value_heads not in (None, config.num_attention_heads):
        heads += f" ({config.num_key_value_heads} of keys and values)"
    report.facts["model"] = (
        f"{config.num_hidden_layers} layers of width {config.hidden_size:,}, {heads}, "
        f"context {config.max_position_embeddings:,}, {config.num_ids:,} ids"
    )
    report.facts["parameters"] = f"{config.num_parameters():,}"
    return config


def _describe_adapter(folder: Path, report: Report) -> None:
    """What kind of adapter it is, and where the model that it is for is or is said to be."""
    report.kind = report.kind.replace("checkpoint", "adapter").replace("model folder", "adapter")
    try:
        with explaining(folder / ADAPTER_CONFIG):
            adapter = read_peft_config(read_json(folder / ADAPTER_CONFIG))
        report.facts["adapter"] = adapter.describe()
        base = read_base(folder)
        if base is not None:
            report.facts["base"] = f"{base.path}, whose weights have the sha256 {base.sha256}"
    except CheckpointError as error:
        report.problems.append(str(error).removeprefix(f"{folder}/"))
    if not (folder / ADAPTER_WEIGHTS).is_file():
        report.problems.append(f"no {ADAPTER_WEIGHTS}: there is an adapter's description only")


def _describe_weights(
    found: WeightFiles | None, config: ModelConfig | None, report: Report
) -> None:
    if found is None:
        report.problems.append(f"no {WEIGHTS}: there is a model's description, but no weights")
        return
    report.problems += found.problems
    dtypes = ", ".join(sorted(found.dtypes))
    files = found.names[0] if len(found.names) == 1 else format_plural(len(found.names), "file")
    report.facts["weights"] = f"{files}, {format_bytes(found.num_bytes)} {dtypes}".rstrip()
    if config is None or found.problems or not found.sizes or "kept as" in report.facts:
        return  # Numbers that are packed are not counted.
    counted = found.count_parameters(config.tie_word_embeddings)
    if counted != config.num_parameters():
        report.problems.append(
            f"the weights have {counted:,} parameters, {CONFIG} describes "
            f"{config.num_parameters():,}"
        )


def _compare_ids(config: ModelConfig | None, report: Report) -> None:
    num_ids = int(report.facts.get("ids", "0").replace(",", ""))
    if config is not None and num_ids > config.num_ids:
        report.problems.append(
            f"the tokenizer has {num_ids:,} ids, the model {config.num_ids:,}; use the tokenizer "
            "that it was trained with"
        )
