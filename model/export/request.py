"""What `velocity export` is asked for: the formats, what each can hold, and its limits.

Imports no torch, so that --help is quick. A format is a row of FORMATS and a module of this room
with two functions:

    write(source, folder, name, dtype)      the export, in a folder that is there
    open_runtime(source, path, dtype)       that export, loaded again: what gives its logits
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# In an export's folder, or beside its file with that one's name before it.
CERTIFICATE = "certificate.json"
FormatName = Literal["gguf", "ollama", "onnx", "pt2", "int8"]


@dataclass(frozen=True)
class Limits:
    """How far an export may be from its checkpoint on the text that it is certified with."""

    # Mean Kullback-Leibler divergence per token from the checkpoint's probabilities, in nats.
    kl: float
    # The share of tokens after which the likeliest next one is the same, or nearly as likely.
    agreement: float
    # By how much the mean loss may change, in nats, up or down.
    loss_change: float


# A format that keeps fp32 computes the same in another order; the others' limits are about ten
# times what a trained model shows, so that a wrong layout is far past them and rounding is not.
LIMITS = {
    "fp32": Limits(1e-5, 0.999, 1e-3),
    "fp16": Limits(1e-4, 0.99, 3e-3),
    "bf16": Limits(1e-3, 0.98, 1e-2),
    "q8_0": Limits(2e-3, 0.97, 1e-2),
    "int8": Limits(2e-3, 0.97, 1e-2),
    "q5_1": Limits(0.02, 0.85, 0.05),
    "q5_0": Limits(0.02, 0.85, 0.05),
    "q4_1": Limits(0.08, 0.7, 0.15),
    "q4_0": Limits(0.08, 0.7, 0.15),
}
# Bytes that a weight takes.
WEIGHT_BYTES = {
    "fp32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "int8": 1.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
}
GGUF_DTYPES = ("fp16", "fp32", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1")
# Other names of the same, as llama.cpp and safetensors have them.
DTYPE_ALIASES = {"f32": "fp32", "f16": "fp16", "float32": "fp32", "float16": "fp16"}
DTYPE_ALIASES |= {"bfloat16": "bf16"}


@dataclass(frozen=True)
class Format:
    """One thing that a checkpoint can become."""

    module: str
    # What its weights may be; the first one unless told otherwise.
    dtypes: tuple[str, ...]
    # What PATH is: one file with this suffix, or a folder.
    suffix: str | None = None
    # The packages that it needs, and the extra of ours that has them.
    packages: tuple[str, ...] = ()
    extra: str | None = None
    # Whether the folder is a checkpoint of ours again, which gets a seal.
    is_checkpoint: bool = False


FORMATS: dict[str, Format] = {
    "gguf": Format("model.export.gguf.writer", GGUF_DTYPES, ".gguf", ("gguf",), "gguf"),
    "ollama": Format(
        "model.export.ollama", ("q8_0", *(d for d in GGUF_DTYPES if d != "q8_0")), None, ("gguf",),
        "gguf",
    ),
    "onnx": Format(
        "model.export.onnx", ("fp32",), None, ("onnx", "onnxscript", "onnxruntime"), "onnx"
    ),
    "pt2": Format("model.export.pt2", ("fp32", "bf16"), ".pt2"),
    "int8": Format("model.export.int8", ("int8",), is_checkpoint=True),
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A checkpoint, and what is to be made of it where; ValueError for what cannot be."""

    ckpt: Path
    format: FormatName
    out: Path
    dtype: str
    # The model that an adapter is for, if it is named.
    base: Path | None = None

    @property
    def kind(self) -> Format:
        """The row of its format."""
        return FORMATS[self.format]

    @property
    def places(self) -> tuple[Path, ...]:
        """What it writes: a folder, or a file and the certificate beside it."""
        if self.kind.suffix is None:
            return (self.out,)
        return self.out, self.out.with_name(f"{self.out.name}.{CERTIFICATE}")


def make_request(
    ckpt: Path, format: FormatName, out: Path, dtype: str | None, base: Path | None = None
) -> Request:
    """The request that these options make."""
    kind = FORMATS[format]
    chosen = DTYPE_ALIASES.get(dtype or kind.dtypes[0], dtype or kind.dtypes[0])
    if chosen not in kind.dtypes:
        raise ValueError(
            f"--dtype is {dtype!r}; with --format {format}, expected one of "
            f"{', '.join(kind.dtypes)}"
        )
    if kind.suffix and out.suffix != kind.suffix:
        raise ValueError(f"--out is {out}; expected a file whose name ends with {kind.suffix}")
    return Request(ckpt, format, out, chosen, base)
