"""How close exports are to their checkpoints in the runtimes that are there to run them.

    python -m benchmarks.quality.exports

Models are small and random, their tokenizers trained on Python's documentation; no time is
measured. llama.cpp is run where llama-cpp-python is installed, onnxruntime and onnxruntime-genai
where those are. Of each kind of positions: the largest difference of a logit in fp32, and how many
of 30 greedy tokens are equal. Of each kind of tokenizer: of how many awkward texts the ids are.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.measure import Json, count_equal, find_version, print_line, run_script, say
from benchmarks.quality.export_tokenizers import TEXTS, make_tokenizers
from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.config import ModelConfig
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.export.request import FormatName, make_request
from model.export.run import export
from model.export.source import open_source
from model.generate import load_generator
from model.transformer import Transformer
from prep.python_docs import read_topics

RUNTIMES = ("llama-cpp-python", "onnxruntime", "onnxruntime-genai")
PACKAGES = (*RUNTIMES, "gguf", "onnx", "onnxscript", "torch", "tokenizers", "transformers")
NUM_GREEDY = 30
PROMPT = "The quick brown"
STRETCHED = {"rope_factor": 4.0, "rope_original_max_position_embeddings": 64}
# Shared keys, heads of their own width, and rows of the embedding that no token has.
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
MODELS: dict[str, dict[str, Any]] = {
    "unscaled": {"tie_word_embeddings": False},
    "unscaled, tied": {"tie_word_embeddings": True},
    "linear": {"rope_type": "linear", "rope_factor": 4.0},
    "yarn": {"rope_type": "yarn", **STRETCHED},
    "yarn, attention_factor": {"rope_type": "yarn", "rope_attention_factor": 0.9, **STRETCHED},
    "llama3": {"rope_type": "llama3", **STRETCHED},
}


def main() -> None:
    """Measure what is there to be measured, and print one line of JSON."""
    parser = argparse.ArgumentParser(description="Exports in the runtimes that run them.")
    options = parser.parse_args()
    has_llama, has_onnx, has_genai = (find_version(name) is not None for name in RUNTIMES)
    checks: Json = {"gguf": {}, "tokenizers": {}, "onnx": {}, "genai": {}}
    text = "\n\n".join(topic for _, topic in read_topics())
    with TemporaryDirectory(prefix="benchmark-exports-") as name:
        folder = Path(name)
        tokenizers = dict(make_tokenizers(text))
        plain = tokenizers["GPT-2"]
        for kind, changes in MODELS.items():
            say(f"positions: {kind}")
            ckpt = write_checkpoint(folder / f"model {kind}", plain, changes)
            if has_llama:
                checks["gguf"][kind] = check_gguf(ckpt, text)
        for kind, tokenizer in tokenizers.items():
            say(f"tokenizer: {kind}")
            ckpt = write_checkpoint(folder / f"tokenizer {kind}", tokenizer, MODELS["unscaled"])
            if has_llama:
                checks["tokenizers"][kind] = check_tokenizer(ckpt, text)
        if has_onnx:  # Tracing takes a while, and angles are constants there.
            say("onnx")
            checks["onnx"] = certify(folder / "model unscaled", "onnx", folder / "onnx", text)
        if has_genai:
            say("onnxruntime-genai")
            checks["genai"] = check_genai(folder / "model unscaled", folder / "genai")
    checks["texts"], checks["greedy_tokens"] = len(TEXTS), NUM_GREEDY
    left_out = dict.fromkeys((p for p in PACKAGES if find_version(p) is None), "not installed")
    print_line("quality.exports", options, {"checks": checks, "left_out": left_out}, PACKAGES)


def write_checkpoint(folder: Path, tokenizer_json: str, changes: dict[str, Any]) -> Path:
    """A sealed checkpoint of a random model with this tokenizer."""
    num_ids = Tokenizer.from_str(tokenizer_json).get_vocab_size() + 4
    torch.manual_seed(1)
    save_model(folder, Transformer(ModelConfig(num_ids, **(SHAPE | changes))), tokenizer_json)
    seal(folder)
    return folder


def certify(ckpt: Path, format: FormatName, out: Path, text: str) -> Json:
    """Export in fp32; what the certificate says, with the runtime that it was measured by."""
    request = make_request(ckpt, format, out, "fp32")
    export(request, text, "Python's documentation", lambda line: None)
    path = out / "certificate.json" if out.is_dir() else request.places[1]
    found = json.loads(path.read_text())
    measured = found["measured"]
    return {
        "runtime": found["runtime"],
        "tokens": measured["num_tokens"],
        "max_difference": measured["max_difference"],
    }


def check_gguf(ckpt: Path, text: str) -> Json:
    """What llama.cpp makes of the file: how far its logits are, and its greedy tokens."""
    path = ckpt.with_suffix(".gguf")
    told = certify(ckpt, "gguf", path, text)
    llama = open_llama(path)
    generator = load_generator(ckpt, "cpu")
    prompt = generator.tokenizer.encode(PROMPT).ids
    found = [*prompt, *islice(llama.generate(prompt, temp=0.0), NUM_GREEDY)]
    return told | {"greedy_equal": count_greedy(found, generator)}


def count_greedy(found: Sequence[int], generator: Generator) -> int:
    """How many of a runtime's greedy tokens after the prompt are ours, until one is not."""
    settings = Settings(temperature=0, max_new_tokens=NUM_GREEDY)
    [completion] = generator.complete([PROMPT], settings)
    return count_equal(found, completion.tokens) - completion.num_prompt_tokens


def check_tokenizer(ckpt: Path, text: str) -> Json:
    """Of how many texts llama.cpp's ids are ours; those of which they are not."""
    path = ckpt.with_suffix(".gguf")
    certify(ckpt, "gguf", path, text)
    llama, source = open_llama(path), open_source(ckpt)
    different = [
        text
        for text in TEXTS
        if source.tokenizer.encode(text).ids
        != llama.tokenize(text.encode(), add_bos=source.adds_begin, special=False)
    ]
    return {"equal": len(TEXTS) - len(different), "different": different}


def open_llama(path: Path) -> Any:
    """The file in llama.cpp, with keys and values in fp32."""
    import llama_cpp

    kind = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(
        str(path), n_ctx=0, verbose=False, type_k=kind, type_v=kind, n_gpu_layers=0
    )


def check_genai(ckpt: Path, out: Path) -> Json:
    """The checkpoint by onnxruntime-genai's own builder: token ids, and greedy tokens."""
    words = ["-i", ckpt, "-o", out, "-p", "fp32", "-e", "cpu", "-c", out.with_suffix(".cache")]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, words)]
    subprocess.run(builder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    import onnxruntime_genai as genai

    model = genai.Model(str(out))
    tokenizer, generator = genai.Tokenizer(model), load_generator(ckpt, "cpu")
    prompt = generator.tokenizer.encode(PROMPT).ids
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + NUM_GREEDY, do_sample=False)
    writer = genai.Generator(model, parameters)
    writer.append_tokens(prompt)
    while not writer.is_done():
        writer.generate_next_token()
    return {
        "ids_equal": [*map(int, tokenizer.encode(PROMPT))] == prompt,
        "greedy_equal": count_greedy([*map(int, writer.get_sequence(0))], generator),
    }


if __name__ == "__main__":
    run_script(main)
