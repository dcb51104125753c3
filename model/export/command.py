"""The `velocity export` command."""

from pathlib import Path
from typing import Annotated

import typer

from model.checkpoints.hub import fetch
from model.export.request import FormatName, make_request
from model.sample.options import BaseOption, CkptOption
from shards.entry.options import takes_options
from shards.screen.lines import align, put, say


@takes_options
def export(
    ckpt: CkptOption,
    format: Annotated[FormatName, typer.Option(help="What to write.")],
    out: Annotated[Path, typer.Option(help="A new file (gguf, pt2), or a new folder.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The weights. gguf, ollama: fp32, fp16, bf16, q8_0, q5_0, q5_1, q4_0, q4_1; pt2: "
            "fp32, bf16. Default: fp16 for gguf, q8_0 for ollama, fp32 for onnx and pt2."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A text to certify with. Default: Python's documentation."),
    ] = None,
    base: BaseOption = None,
) -> None:
    """Write a checkpoint for another runtime; it is loaded there and compared before it counts."""
    request = make_request(fetch(ckpt, say), format, out, dtype, base and fetch(base, say))
    from model.export.run import export as export_checkpoint
    from model.sample.prompts import read_text
    from prep.python_docs import read_topics

    documentation = "\n\n".join(topic for _, topic in read_topics())
    content = documentation if text is None else read_text(str(text))
    name = "Python's documentation" if text is None else str(text)
    for line in align(export_checkpoint(request, content, name, say)):
        put(line)
    put(f"{out}: done, and certified")
