"""llama.cpp as an engine of `sample`: a process of any Python that has llama-cpp-python.

    PYTHON -P benchmarks/sample/llama.py MODEL.gguf THREADS

It is built from C++ for half an hour, so it is often in an environment of its own, and its threads
should not meet torch's. A request is a line of JSON, [ids of a prompt, how many new ones]; so is
the answer, the greedy ids. This file imports nothing of ours.
"""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path


class Llama:
    """A process that has loaded a GGUF file; it ends when its standard input does."""

    def __init__(self, python: Path, model: Path, num_threads: int) -> None:
        self._process = subprocess.Popen(
            [str(python), "-P", __file__, str(model), str(num_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self, prompt: list[int], num_new: int) -> list[int]:
        """The greedy ids after a prompt; ValueError if the process has failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([prompt, num_new]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # It has said why on standard error.
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ValueError(f"the process with llama.cpp ended with exit code {code}")
        tokens: list[int] = json.loads(line)
        return tokens


def find_llama(python: Path) -> str | None:
    """The version of llama-cpp-python that a Python has; None if it has none."""
    ask = "from importlib.metadata import version; print(version('llama-cpp-python'))"
    process = subprocess.run([str(python), "-c", ask], capture_output=True, text=True)
    return None if process.returncode else process.stdout.strip()


def answer(model: str, num_threads: int) -> None:
    """Load the file, and answer requests until there are no more."""
    import llama_cpp

    llama = llama_cpp.Llama(
        model,
        n_ctx=0,
        n_threads=num_threads,
        n_threads_batch=num_threads,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        n_gpu_layers=0,
        verbose=False,
    )
    for line in sys.stdin:
        prompt, num_new = json.loads(line)
        llama.reset()  # It would not read again what a prompt shares with the last one.
        print(json.dumps([*islice(llama.generate(prompt, temp=0.0), num_new)]), flush=True)


if __name__ == "__main__":
    answer(sys.argv[1], int(sys.argv[2]))
