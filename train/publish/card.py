"""The model card: a README.md from what is known about a checkpoint, and nothing else.

Names of files, datasets and runs are a user's: they are escaped, so that none of them is markup.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from shards.format import Manifest
from shards.screen.lines import format_number
from shards.screen.names import escape_line
from train.publish.facts import Facts
from train.reports.evaluations import is_drawn, show_number
from train.settings import config_to_dict

CURVES = "loss.png"
PRETRAINED = (
    "A language model pretrained with Velocity: a decoder of Llama's architecture. It was trained "
    "to go on with text, not to follow instructions."
)
TUNED = (
    "A language model fine-tuned on chats with Velocity: a decoder of Llama's architecture. Its "
    "chat template is chat_template.jinja."
)
# Nothing is known of how it was trained.
FOREIGN = "A language model: a decoder of Llama's architecture."
# What Markdown or HTML would take for more than text.
MARKS = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&:@.-])")
# Settings that are about a machine, and the original's name for its tokenizer: it is the set's.
LEFT_OUT = ("infrastructure", "distributed", "tokenizer")
PATHS = (
    "model.start",
    "data.shards",
    "data.mixture",
    "training.eval_sets",
    "training.eval_tasks",
    "training.sample_prompts",
)
SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "tie_word_embeddings",
)


def make_card(facts: Facts, repo: str, license: str, space: str | None, has_curves: bool) -> str:
    """The text of README.md for the repository `repo`."""
    lines = [*make_header(facts, license), f"# {show(repo.partition('/')[2])}", ""]
    known = TUNED if facts.writes_chats else PRETRAINED
    lines += [known if facts.run is not None else FOREIGN, ""]
    if space:
        lines += [f"Try it: [{show(space)}](https://huggingface.co/spaces/{space})", ""]
    lines += [*describe_use(repo), *describe_shape(facts), *describe_run(facts, has_curves)]
    lines += [*describe_data(facts), *describe_settings(facts)]
    return "\n".join(lines) + "\n"


def make_header(facts: Facts, license: str) -> list[str]:
    """The YAML at the card's top, which the Hub reads."""
    values: dict[str, Any] = {
        "license": license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    if facts.run is not None:
        values["tags"] = ["velocity", "fine-tuning" if facts.began_with else "pretraining"]
    hubs = [found.content["sources"]["hub"] for found in facts.manifests if found]
    if named := list(dict.fromkeys(hub["repo"] for hub in hubs if hub)):
        values["datasets"] = named
    header = yaml.safe_dump(values, sort_keys=False, allow_unicode=False)
    return ["---", header.rstrip("\n"), "---", ""]


def describe_use(repo: str) -> list[str]:
    """How to load the model in other programs."""
    name = repo.partition("/")[2]
    return [
        "## How to use it",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        f'generator = pipeline("text-generation", model="{repo}")',
        'print(generator("Once upon a time", max_new_tokens=100)[0]["generated_text"])',
        "```",
        "",
        "With Velocity, and for llama.cpp:",
        "",
        "```bash",
        f"hf download {repo} --local-dir {name}",
        f"velocity sample --ckpt {name}",
        f"velocity export --ckpt {name} --format gguf --out {name}.gguf",
        f'llama-cli -m {name}.gguf -no-cnv -p "Once upon a time"',
        "```",
        "",
    ]


def describe_shape(facts: Facts) -> list[str]:
    """The model's numbers."""
    rows = [[key, facts.shape[key]] for key in SHAPE if key in facts.shape]
    rows.insert(0, ["parameters", facts.model.num_parameters()])
    return ["## The model", "", *make_table(["", ""], rows), ""]


def describe_run(facts: Facts, has_curves: bool) -> Iterator[str]:
    """How it was trained, and how far it came."""
    if facts.run is None or facts.position is None:
        return
    yield from ("## The run", "")
    rows: list[list[object]] = [["steps", facts.position.step]]
    rows += [["samples", facts.position.samples_consumed], ["tokens", facts.tokens_seen]]
    if facts.began_with is not None:
        name, sha256 = Path(facts.began_with["folder"]).name, facts.began_with["weights_sha256"]
        rows.insert(0, ["began with", f"the weights of {name}, sha256 {sha256}"])
    curves = facts.log.curves if facts.log is not None else {}
    for name, label in (("loss", "training loss"), ("validation_loss", "validation loss")):
        if name in curves:
            step, value = curves[name].steps[-1], curves[name].values[-1]
            rows.append([f"{label}, nats a token", f"{format_number(value)} at step {step:,}"])
    for name in filter(is_drawn, sorted(curves)):
        step, value = curves[name].steps[-1], curves[name].values[-1]
        number = show_number(name.rpartition("/")[2], value)
        rows.append([name.replace("/", ", "), f"{number} at step {step:,}"])
    yield from make_table(["", ""], rows)
    yield ""
    if has_curves:
        yield from (f"![Training and validation loss over the steps]({CURVES})", "")


def describe_data(facts: Facts) -> Iterator[str]:
    """What it was trained on: each set, by its id, and how its documents were counted."""
    position = facts.position
    if position is None:
        return
    yield from ("## The data", "")
    if len(facts.manifests) > 1:
        yield f"It is a mixture of {len(facts.manifests)} sets."
        yield ""
    counts = position.mixture.count(position.samples_consumed).tolist()
    for found, manifest, count in zip(position.sets, facts.manifests, counts, strict=True):
        yield f"The set of token ids has dataset_id {show(found.dataset_id)}: the same sources and"
        yield "options give it again, byte for byte."
        if len(facts.manifests) > 1:
            yield f"The run took {count:,} of its samples from it."
        if found.where is not None:
            yield f"Of its documents it read those where {show(found.where)}."
        yield ""
        if manifest is not None:
            yield from describe_set(manifest)


def describe_set(manifest: Manifest) -> Iterator[str]:
    """Where the documents of a set came from, and how they were counted."""
    content, audit = manifest.content, manifest.audit
    rows: list[list[object]] = []
    hub = content["sources"]["hub"]
    if hub:
        rows.append(["source", f"{hub['repo']} at {hub['revision']}, of the Hub"])
    rows.append(["files", len(content["sources"]["files"])])
    name = Path(content["tokenizer"]["name"])  # Of the Hub, or a path.
    rows.append(["tokenizer", name.name if name.is_absolute() else name])
    rows += [[f"{split} tokens", manifest.num_tokens(split)] for split in ("train", "validation")]
    named = (("documents_read", "documents read"), ("train", "train"), ("validation", "validation"))
    rows += [[label, audit[key]] for key, label in named if key in audit]
    rows += [[f"dropped: {reason}", number] for reason, number in audit["dropped"].items()]
    yield from make_table(["", ""], rows)
    yield ""


def describe_settings(facts: Facts) -> Iterator[str]:
    """All settings of the run but those of its machine, folded."""
    if facts.run is None:
        return
    yield from ("## Settings", "", "<details><summary>All of them</summary>", "")
    rows = []
    for section, values in config_to_dict(facts.run).items():
        if section not in LEFT_OUT:
            rows += [
                [f"{section}.{key}", value]
                for key, value in values.items()
                if f"{section}.{key}" not in PATHS
            ]
    yield from make_table(["", ""], rows)
    yield from ("", "</details>", "")


def make_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table of Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(show, row))} |" for row in rows)]


def show(value: object) -> str:
    r"""Anything as text in Markdown, which is no markup there.

    >>> show("<b>|x|"), show(1234567)
    ('\\<b\\>\\|x\\|', '1,234,567')
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return MARKS.sub(r"\\\1", escape_line(str(value)))
