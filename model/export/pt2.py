"""A package of AOTInductor: the model compiled for this processor, and run without a compiler.

    step = torch._inductor.aoti_load_package("model.pt2")
    logits, *present = step(tokens, mask, positions, *past)

model/export/step.py says what these are. Compiling takes a C++ compiler and about a minute.
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.export.certificate import Runtime
from model.export.source import Source
from model.export.step import Step, make_example, name_dimensions, run_in_parts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def write(source: Source, folder: Path, name: str, dtype: str) -> Path:
    """Compile the model into one file; ValueError, saying so, without a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError(
            "--format pt2 compiles C++, and there is no compiler; install g++ or clang, or name "
            "one in the environment variable CXX"
        ) from None
    wanted, path = DTYPES[dtype], folder / name
    model = source.model if dtype == "fp32" else copy.deepcopy(source.model).to(wanted)
    inductor: Any = torch._inductor
    with warnings.catch_warnings(action="ignore"), torch.no_grad():  # Of what torch does inside.
        program = torch.export.export(
            Step(model, source.num_words),
            make_example(source.config, wanted),
            dynamic_shapes=name_dimensions(source.config),
            strict=False,
        )
        inductor.aoti_compile_and_package(program, package_path=str(path))
    return path


def open_runtime(source: Source, path: Path, dtype: str) -> Runtime:
    """The package, loaded, and called without a past, with one, and with a single token."""
    inductor: Any = torch._inductor
    step = inductor.aoti_load_package(str(path))

    def compute(tokens: Tensor) -> Tensor:
        return run_in_parts(step, tokens, source.config, DTYPES[dtype])

    return Runtime(f"AOTInductor of torch {torch.__version__} on the CPU", compute)
