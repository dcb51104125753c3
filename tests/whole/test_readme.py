"""The commands in README.md, CONTRIBUTING.md and docs/, run as they stand there, at a small size.

bash runs each block; its programs only write down their words, after all that a shell does to them.
Then the words are run: `velocity` in one process for all of them, torchrun as two small ranks, with
a Hub and an S3 server on this machine. A command that this file cannot run fails its page.
"""

import ast
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

import cli
from prep.tokenizer.gpt2 import build_gpt2_json
from tests.foreign import END, write_llmc, write_megatron, write_nanogpt
from tests.prep.test_hub_prep import CARD, REPO
from tests.runs import SMALL
from tests.servers.forked import FORKS
from tests.servers.hub_server import HubServer, changed_environment
from tests.servers.model_server import start_process
from tests.servers.s3_server import S3Server, run_s3_server
from tests.texts import make_texts, write_parquet
from tests.vocabularies import build

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
# What .ci/run does in a fresh environment.
CI_LINE = (
    "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[test]' "
    "&& .venv/bin/pytest"
)
# What stands in place of a program: its name and words end with \037, the record with \036.
RECORDER = """#!/bin/sh
printf '%s\\036' "$(printf '%s\\037' "${{0##*/}}" "$@")" >> {record}
"""
MAKE_ENVIRONMENT = 'case "$*" in "-m venv "*) exec {python} -m venv --without-pip "$3";; esac\n'
PROGRAMS = ("velocity", "torchrun", "pip", "python", "python3", "curl")
SERVED = "http://127.0.0.1:8000"
CLUSTER = re.compile(r"sbatch|SBATCH|kubectl|ray start|--engine ray")
FINEWEB = "HuggingFaceFW/fineweb"
FINEWEB_CARD = b"""---
configs:
- config_name: sample-10BT
  data_files: sample/10BT/*.parquet
- config_name: default
  data_files: data/*.parquet
---
"""
CONTEXT = SMALL["model.max_position_embeddings"]
SMALL_RUN = [f"{key}={value}" for key, value in SMALL.items()]


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def read_blocks(page: str, language: str = "bash") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read_page(page), re.DOTALL | re.MULTILINE)


class Server:
    """The model server that a page starts: a process, which the rest of the page asks."""

    def __init__(self) -> None:
        self.end = contextlib.ExitStack()
        self.url = ""

    def start(self, options: list[str], folder: Path) -> None:
        """Start it; if there is one already, see that it has these options."""
        if self.url:
            known = re.findall(r"--[\w-]+", run_cli(["serve", "--help"], folder)[1])
            assert {option for option in options if option[:2] == "--"} <= {*known}, options
            return
        match options:
            case ["--ckpt", checkpoints]:
                for path in (folder / checkpoints).glob("checkpoint-*"):
                    (path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
                _, self.url = self.end.enter_context(start_process(folder / checkpoints))
            case _:
                pytest.fail(f"this test does not know how to serve: {options}")

    def ask(self, options: list[str]) -> None:
        """Do what curl does; each request must be answered."""
        match [option for option in options if option != "-N"]:
            case [url]:
                answer = httpx.get(url.replace(SERVED, self.url))
            case [url, "-H", kind, "-d", body]:
                headers = dict([kind.split(": ")])
                answer = httpx.post(
                    url.replace(SERVED, self.url), headers=headers, content=body, timeout=60
                )
            case _:
                pytest.fail(f"this test does not know how to ask: {options}")
        assert answer.status_code == 200, f"{options}\n{answer.text}"


@dataclass(frozen=True)
class World:
    """What the commands find: a folder, object storage, and a process that knows the Hub."""

    folder: Path
    s3: S3Server
    worker: Executor
    environment: dict[str, str]
    server: Server

    def record(self, block: str, folder: Path) -> list[list[str]]:
        """The words of all commands that bash runs in a block, in order."""
        programs, record = folder / ".programs", folder / ".record"
        programs.mkdir(exist_ok=True)
        record.write_text("")
        for name in PROGRAMS:
            (programs / name).write_text(
                RECORDER.format(record=record)
                + (MAKE_ENVIRONMENT.format(python=sys.executable) if name == "python3" else "")
            )
            (programs / name).chmod(0o755)
        block = block.replace("/shared/", f"{folder}/shared/")
        block = block.replace("10.0.0.5:9000", self.s3.address)
        process = subprocess.run(
            ["/bin/bash", "-e", "-o", "pipefail", "-c", block],
            cwd=folder,
            env={"PATH": str(programs)},  # Nothing else: an unknown program is an error.
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, f"{block}\n{process.stderr}"
        records = record.read_text().split("\036")[:-1]
        return [words.split("\037")[:-1] for words in records]

    def run(self, words: list[str], folder: Path) -> None:
        """Run one command, at a small size."""
        match words:
            case ["velocity", "quickstart"] | ["velocity", "quickstart", "--chat"]:
                assert list((ROOT / "tests").rglob("test_quickstart.py")), "it has its own test"
            case ["velocity", "verify-resume", *_]:
                # Two whole runs, which its own test makes; here only that its options are read.
                code, said = self.worker.submit(
                    run_cli, [*words[1:], "--steps", "3"], folder
                ).result()
                assert (code, "--steps is 3; expected at least 4" in said) == (1, True), said
            case ["velocity", "tune-lr", *_]:
                # Three whole runs, likewise.
                code, said = self.worker.submit(
                    run_cli, [*words[1:], "--ranks", "0"], folder
                ).result()
                assert (code, "--ranks is 0; expected at least 1" in said) == (1, True), said
            case ["velocity", "serve", *options]:
                self.server.start(options, folder)
            case ["curl", *options]:
                self.server.ask(options)
            case ["velocity", "export", *options] if {"onnx", "pt2"} & {*options}:
                # They take long, and have their own tests; here only that the options are read.
                taken = folder / options[options.index("--out") + 1]
                taken.touch()
                code, said = self.worker.submit(run_cli, words[1:], folder).result()
                assert (code, "is there already" in said) == (1, True), said
            case ["velocity", *options]:
                self.worker.submit(run_velocity, options, folder).result()
            case ["torchrun", "--nproc_per_node", "1", "-m", "train", *options]:
                self.worker.submit(run_train, options, folder).result()
            case ["torchrun", "--nproc_per_node", _, *options]:
                self.run_torchrun(options, folder)
            case ["pip", "install", *options]:
                check_install(options)
            case ["python3", "-m", "venv", ".venv"]:
                assert (folder / ".venv/bin/activate").exists()
            case ["python", "-m", module, *options]:
                # Its own tests run it; here, that it has these options.
                text = self.worker.submit(describe_benchmark, module, folder).result()
                names = {option for option in options if option.startswith("--")}
                assert names <= set(re.findall(r"--[\w-]+", text)), f"{module}: {names}"
            case ["python", script, *options] if script.startswith("docs/"):
                self.worker.submit(run_script, script, options, folder).result()
            case _:
                pytest.fail(f"this test does not know how to run: {words}")

    def run_torchrun(self, options: list[str], folder: Path) -> None:
        """Two ranks for as many as there may be."""
        small = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        process = subprocess.run(
            [sys.executable, *small, *options, *shrink(options)],
            cwd=folder,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert process.returncode == 0, f"{options}\n{process.stderr}"


def run_velocity(words: list[str], folder: Path) -> None:
    """In the worker: `velocity`."""
    small = {
        "prep": ["--workers", "1"],
        "sample": ["--max-new-tokens", "3"],
        "tokenizer": ["--vocab-size", "270"],
    }
    length = str(SMALL["data.max_seq_length"])
    rows = ["--pack-tokens", length] if "--pack" in words else []
    if words[0] == "prep" and "--chat" in words:
        rows = ["--pack-tokens", str(CONTEXT)]
    if words[0] == "plan" and "--shards" in words:
        rows = [f"data.max_seq_length={length}"]
    code, said = run_cli([*words, *small.get(words[0], []), *rows], folder)
    assert code == 0, f"{words}\n{said}"


def run_cli(words: list[str], folder: Path) -> tuple[int, str]:
    """In the worker: any command of `velocity`; its exit code, and what it said."""
    with contextlib.chdir(folder):
        result = CliRunner().invoke(cli.app, words)
    return result.exit_code, f"{result.output}\n{result.exception!r}"


def run_train(options: list[str], folder: Path) -> None:
    """In the worker: `-m train` as the only rank."""
    from train.__main__ import read_settings
    from train.loop import train

    with contextlib.chdir(folder):
        config = read_settings([*options, *shrink(options)])
        assert config is not None
        train(config)


def shrink(options: list[str]) -> list[str]:
    """The settings of a small run; one that begins with a folder has its shape."""
    has_shape = any(option.startswith("model.start=") for option in options)
    words = [word for word in SMALL_RUN if not (has_shape and word.startswith("model."))]
    if not {"sft", "dpo"} & {*options}:
        return words
    # Its rows are the set's, and epochs say how far it goes.
    own = ("data.max_seq_length", "training.num_training_steps", "training.gradient_accumulation")
    words = [word for word in words if not word.startswith(own)]
    return [*words, "training.epochs=1", f"training.global_batch_tokens={4 * CONTEXT}"]


def run_script(script: str, options: list[str], folder: Path) -> None:
    """In the worker: a script of a checkout."""
    sys.argv = [script, *options]
    with contextlib.chdir(folder):
        runpy.run_path(str(folder / script), run_name="__main__")


def run_python(code: str, folder: Path) -> str:
    """In the worker: Python's own lines; what they print."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()


def check_install(options: list[str]) -> None:
    """pip's line installs torch as constrained, or this project with extras that it has."""
    constraints = read_page("constraints.txt").splitlines()
    match options:
        case [torch, "--index-url", "https://download.pytorch.org/whl/cpu"]:
            assert torch in constraints
        case ["-c", "constraints.txt", "-e", target]:
            found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", target)
            assert found, target
            project = tomllib.loads(read_page("pyproject.toml"))["project"]
            extras = {*found[1].split(",")} if found[1] else set()
            assert extras <= project["optional-dependencies"].keys()
        case _:
            pytest.fail(f"this test does not know how to install: {options}")


def describe_benchmark(module: str, folder: Path) -> str:
    """In the worker: the help of a script of benchmarks/."""
    sys.argv = [module, "--help"]
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.suppress(SystemExit),
    ):
        runpy.run_module(module, run_name="__main__")
    return printed.getvalue()


def find_validation_texts(count: int) -> Iterator[str]:
    """Texts whose hash sends one in a thousand to validation."""
    number = 0
    while count:
        text = f"A text of validation is found by its hash, and this one has number {number}."
        if int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < 2**64 // 1000:
            count -= 1
            yield text
        number += 1


def write_web(path: Path) -> bytes:
    """A file as RefinedWeb's, with texts for both splits, a copy and a score; its bytes."""
    texts = [*make_texts(60), *find_validation_texts(4), *["Once upon a time"] * 2]
    urls = [f"https://example.com/{chr(97 + number)}" for number in range(len(texts))]
    score = pa.repeat(pa.scalar(0.9), len(texts))
    columns = {"content": texts, "text": texts, "url": urls, "language_score": score}
    pq.write_table(pa.table(columns), path)
    return path.read_bytes()


def write_inputs(folder: Path) -> None:
    """The files that the pages speak of."""
    for name in ("my-texts", "more", "benchmarks/results"):
        (folder / name).mkdir(parents=True)
    lines = [json.dumps({"text": text}) + "\n" for text in make_texts(60, seed=1)]
    (folder / "my-texts/1.jsonl").write_text("".join(lines))
    write_parquet(folder / "more/new.parquet", [*make_texts(20, seed=2)])
    (folder / "my-tokenizer").mkdir()
    (folder / "my-tokenizer/tokenizer.json").write_text(build("bpe_32k"))
    (folder / "essay.txt").write_text(make_texts(9)[-1])
    (folder / "urls.txt").write_text("https://example.com/c\nhttps://example.com/nowhere\n")
    question = {
        "question": "Which of these seven rivers is the longest one of all?",
        "choices": ["the Rhine", "the Nile"],
        "answer": 1,
    }
    completion = {"prompt": "The capital of France is", "expected": "Paris"}
    (folder / "completions.jsonl").write_text(json.dumps(completion) + "\n")
    questions = [question, *({**question, "question": text} for text in ("Which?", "And which?"))]
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} and {number}?"},
                {"role": "assistant", "content": f"That is {2 * number}."},
            ]
        }
        for number in range(60)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    pairs = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    problem = {"task_id": "Mine/0", "prompt": "def one():\n", "entry_point": "one", "test": ""}
    (folder / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    last = make_texts(60)[-1]
    (folder / "hashes.txt").write_text(hashlib.sha256(last.encode()).hexdigest()[:32])
    tokenizer = Tokenizer.from_str(build_gpt2_json())
    tokenizer.encode_special_tokens = True
    ids = [tokenizer.encode(text).ids for text in make_texts(40)]
    flat = [token for document in ids for token in [END, *document]]
    for name in ("train.bin", "val.bin"):
        write_nanogpt(folder / name, ids)
    for name in ("web_train_000001.bin", "web_train_000002.bin", "web_val_000000.bin"):
        write_llmc(folder / name, flat)
    write_megatron(folder / "my_text_document", [[document] for document in ids])
    (folder / "llama").mkdir()
    (folder / "llama/tokenizer.json").write_text(build("llama3"))
    llama = Tokenizer.from_str(build("llama3"))
    wide = [[llama.encode(text, add_special_tokens=False).ids] for text in ("one text", "another")]
    write_megatron(folder / "llama_text_document", wide, "<i4", 4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The world after all commands of the README."""
    folder = tmp_path_factory.mktemp("readme")
    home = tmp_path_factory.mktemp("home")
    write_inputs(folder)
    with HubServer() as hub, run_s3_server(home, "bucket") as s3:
        commit_datasets(hub, home)
        environment = hub.environment(home) | s3.environment
        environment |= {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        # One process for all commands, which loads what they need once.
        with (
            changed_environment(environment),
            ProcessPoolExecutor(1, FORKS, take_environment, (dict(os.environ),)) as worker,
        ):
            world = World(folder, s3, worker, environment, Server())
            run_page(world, "README.md", folder)
            yield world
            world.server.end.close()


def take_environment(variables: dict[str, str]) -> None:
    """In the worker, which is forked from a process that knows no Hub."""
    os.environ.update(variables)


def commit_datasets(hub: HubServer, folder: Path) -> None:
    """The datasets that the pages name."""
    web = write_web(folder / "web.parquet")
    hub.commit(REPO, {"README.md": CARD, "data/train-00000-of-00001.parquet": web})
    pq.write_table(pa.table({"text": make_texts(20, seed=3)}), folder / "more.parquet")
    more = (folder / "more.parquet").read_bytes()
    hub.commit(FINEWEB, {"README.md": FINEWEB_CARD, "sample/10BT/000_00000.parquet": more})


def run_page(world: World, page: str, folder: Path) -> None:
    """Run all blocks of a page in a folder."""
    for block in read_blocks(page):
        if "velocity tokenizer train" in block:  # It makes the one that others find there.
            shutil.rmtree(folder / "my-tokenizer", ignore_errors=True)
        if block.strip() != CI_LINE:
            commands = world.record(block, folder)
            assert commands, f"no command in: {block}"
            for words in commands:
                world.run(words, folder)


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if read_blocks(page)])
def test_the_commands_of_a_page_work_as_written(page: str, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    if page == "CONTRIBUTING.md":
        copy_docs(folder)
        write_quickstart(folder / "quickstart", world.folder / "shards")
        run_page(world, page, folder)
        for filled in ("README.md", "docs/commands.md", "docs/settings.md", "docs/map.md"):
            assert (folder / filled).read_text() == read_page(filled), "run: python docs/fill.py"
        assert (folder / "docs/quickstart-loss.svg").read_text() != read_page(
            "docs/quickstart-loss.svg"
        )
    else:
        shutil.copytree(world.folder, folder, ignore=shutil.ignore_patterns(".venv", "home"))
        run_page(world, page, folder)
        if page == "docs/serving.md":
            [code] = read_blocks(page, "python")
            run_python(code.replace(SERVED, world.server.url), folder)


def copy_docs(folder: Path) -> None:
    """A checkout whose docs are copies, so that nothing is written to the real ones."""
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "README.md", folder)
    for name in ("prep", "shards", "model", "train", "benchmarks", "cli.py"):
        (folder / name).symlink_to(ROOT / name)


def write_quickstart(folder: Path, shards: Path) -> None:
    """What docs/draw.py reads of a quickstart."""
    (folder / "logs").mkdir(parents=True)
    (folder / "shards").symlink_to(shards)
    records = [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0, "validation_loss": 8.5}]
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "logs/metrics.jsonl").write_text("".join(lines))


def test_the_three_commands_and_python_work_as_written(world: World) -> None:
    lines = "".join(read_blocks("README.md")).splitlines()
    commands = [
        "velocity prep --out shards/",
        "torchrun --nproc_per_node 4 -m train",
        "velocity sample --ckpt checkpoints/",
    ]
    # The first block has the first two, before what makes a model answer.
    assert [line for line in lines if line in commands] == [*commands[:2], *commands]
    [block] = read_blocks("README.md", "python")
    code = block.replace("max_length=150", "max_length=20")
    printed = world.worker.submit(run_python, code, world.folder).result()
    assert printed.startswith("['Once upon a time")


def test_the_install_lines_are_the_ones_that_are_checked() -> None:
    [(line, page)] = re.findall(r'grep -m 1 -F "(.+)" ([\w.]+)', read_page(".ci/run"))
    found = [entry for entry in read_page(page).splitlines() if line in entry]
    assert found[0] == CI_LINE
    assert "source .venv/bin/activate\npip install -c constraints.txt -e .\n" in read_page(
        "README.md"
    )


def test_what_is_not_run_needs_a_cluster() -> None:
    """A command in another kind of block is no way around these tests."""
    for page in PAGES:
        text = re.sub(r"^```bash\n.*?^```", "", read_page(page), flags=re.DOTALL | re.MULTILINE)
        for block in re.findall(r"^```\w*\n(.*?)^```|((?:^    .*\n)+)", text, re.DOTALL | re.M):
            code = "".join(block)
            commands = re.findall(r"^ *(?:velocity|torchrun|pip|python3?) .*", code, re.MULTILINE)
            assert (
                not commands
                or page == "docs/commands.md"
                or is_path(code)
                or (CLUSTER.search(code))
            ), f"{page}: {commands}"


def is_path(code: str) -> bool:
    """Whether a block is the design's path of a document, which has no command to run."""
    return ".py: " in code


def test_links_and_files_that_the_pages_name_exist() -> None:
    for page in PAGES:
        text = read_page(page)
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text):
            if "://" not in link:
                assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"
        for link, anchor in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", text):
            target = (ROOT / page).parent / link if link else ROOT / page
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert anchor in [make_anchor(title) for title in titles], f"{page}: {anchor}"
        if page == "docs/log.md":
            continue  # A lab book of the past.
        for name in re.findall(r"(?<![\w/.])((?:\w+/)+\w+\.(?:py|yaml|json))\b", text):
            if name.split("/")[0] in {"prep", "shards", "model", "train", "tests", "docs"}:
                assert (ROOT / name).exists() or name.startswith("shards/manifest"), name
        for name, attribute in re.findall(r"((?:\w+/)+\w+\.py): (\w+)\b", text):
            assert re.search(rf"^(def|class) {attribute}\b", read_page(name), re.MULTILINE), name
        for name in re.findall(r"\b(test_\w+)\.py", text):
            assert list((ROOT / "tests").rglob(f"{name}.py")), f"{page}: {name}"


def make_anchor(title: str) -> str:
    """The anchor that a title gets.

    >>> make_anchor("What a set consists of")
    'what-a-set-consists-of'
    """
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_the_messages_that_the_pages_quote_are_those_of_the_code() -> None:
    """What stands between the values of a message (at most two words) is a string of the code."""
    parts = {os.strerror(number) for number in errno.errorcode} | set(find_strings())
    rows = [line.split(" | ") for line in read_page("docs/faults.md").splitlines()]
    messages = [text for row in rows if len(row) > 2 for text in re.findall("`([^`]+)`", row[1])]
    messages += re.findall(
        r"^(?:validation loss|unigram entropy|  +\+).*", read_page("README.md"), re.M
    )
    for page in PAGES:
        blocks = re.findall(r"^    velocity: (.*\n(?:    .*\n)*)", read_page(page), re.MULTILINE)
        messages += [" ".join(block.split()) for block in blocks]
    assert len(messages) > 40
    for message in messages:
        text = drop_details(message.replace("...", ""))
        is_known = [False] * len(text)
        for part in filter(text.__contains__, parts):
            for found in re.finditer(re.escape(part), text):
                is_known[found.start() : found.end()] = [True] * len(part)
        unknown = ["\0" if known else c for c, known in zip(text, is_known, strict=True)]
        for values in "".join(unknown).split("\0"):
            assert len(re.findall("[a-z]{3,}", values)) <= 2, f"{message}: {values}"


def find_strings() -> Iterator[str]:
    """The strings in the code, and the constant pieces of those with values in them."""
    for room in ("prep", "shards", "model", "train"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    part = drop_details(node.value).strip()
                    if len(part) > 3:
                        yield part


def drop_details(text: str) -> str:
    """A text without what stands in parentheses."""
    return re.sub(r"\([^()]*\)", "()", text)


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    figures = [
        ("38", "prep", "datasets"),
        ("7.7", "prep", "tiktoken_pipeline"),
        ("8.0", "prep", "tiktoken"),
        ("1.70", "prep_workers", "one_worker"),
    ]
    for figure, name, peer in figures:
        ratios = json.loads(read_page(f"benchmarks/results/{name}.json"))["ratios"]
        digits = len(figure.partition(".")[2])
        assert f"{ratios[peer]['megabytes_per_second']['median']:.{digits}f}" == figure
        assert f"| {figure} |" in read_page("README.md")
