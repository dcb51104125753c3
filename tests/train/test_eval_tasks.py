"""Tasks: scores are what a plain computation with transformers gives, and lm-eval, if it is there.

What is in the training set is found, and the score is told without it.
"""

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from shards.index.build import build_index
from tests.commands import velocity
from tests.texts import WORDS, make_texts
from tests.tiny import TOKENIZER_JSON, make_model, make_tokenizer
from tests.tokenized import split_of, write_set
from train.evaluation.contamination import Contamination
from train.evaluation.items import Item, Task, read_task
from train.evaluation.shots import Shots, add_shots

END = 0
CONTEXT = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "model"
    save_model(folder, make_model(), TOKENIZER_JSON)
    seal(folder)
    return folder


@pytest.fixture(scope="module")
def llama(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def make_questions() -> list[dict[str, Any]]:
    """Of many lengths; a context is empty, one is too long, one ends in spaces."""
    generator = random.Random(1)
    questions = []
    for number in range(60):
        choices = [
            " ".join(generator.choices(WORDS, k=generator.randint(1, 6))).strip() for _ in range(4)
        ]
        context = " ".join(generator.choices(WORDS, k=generator.randint(1, 12))).strip()
        context = {0: "", 1: f"{context} " * 40, 2: f"{context}  "}.get(number, context)
        answer = generator.randrange(4)
        text = choices.count(choices[answer]) == 1 and number % 2
        questions.append(
            {"question": context, "choices": choices, "answer": choices[answer] if text else answer}
        )
    return questions


def write_lines(path: Path, items: list[dict[str, Any]]) -> Path:
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@torch.no_grad()
def score_plainly(llama: Any, context: str, text: str) -> tuple[float, bool]:
    """The log-probability of a text after a context, and whether greedy sampling writes it."""
    tokenizer = make_tokenizer()
    bare = context.rstrip()
    tokens = tokenizer.encode(context + text).ids
    size = len(tokens) - len(tokenizer.encode(bare).ids)
    tokens = [END, *tokens][-(CONTEXT + 1) :]
    own = torch.tensor(tokens[-size:])
    if not bare:
        logits = llama(torch.tensor([tokens[:-1]])).logits[0]
    else:  # The context begins as it is, not as a document.
        whole = tokenizer.encode(context + text).ids[-(CONTEXT + 1) :]
        logits = llama(torch.tensor([whole[:-1]])).logits[0]
    logprobs = logits[-size:].double().log_softmax(-1)
    return float(logprobs.gather(1, own[:, None]).sum()), bool(
        (logits[-size:].argmax(-1) == own).all()
    )


def run_task(folder: Path, path: Path, *options: object) -> dict[str, Any]:
    code, output, errors = velocity("eval", "--ckpt", folder, "--task", path, "--json", *options)
    assert code == 0, errors
    [found] = json.loads(output)["tasks"]
    return dict(found)


def test_choices_are_scored_as_by_transformers(folder: Path, llama: Any, tmp_path: Path) -> None:
    questions = make_questions()
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for question in questions:
        choices, answer = question["choices"], question["answer"]
        answer = answer if isinstance(answer, int) else choices.index(answer)
        sums = [score_plainly(llama, question["question"], f" {text}")[0] for text in choices]
        by_characters = [s / len(t) for s, t in zip(sums, choices, strict=True)]
        by_bytes = [s / len(t.encode()) for s, t in zip(sums, choices, strict=True)]
        for name, scores in zip(right, (sums, by_characters, by_bytes), strict=True):
            right[name].append(int(np.argmax(scores)) == answer)
    # Each rule answers otherwise somewhere, so that one in place of another would be seen.
    assert len({tuple(found) for found in right.values()}) == 3
    assert len({sum(found) for found in right.values()}) == 3

    path = write_lines(tmp_path / "questions.jsonl", questions)
    found = run_task(folder, path, "--batch-size", 7)
    assert (found["kind"], found["items"], found["cut_items"]) == ("choices", 60, 1)
    for name, expected in right.items():
        assert found[name] == pytest.approx(np.mean(expected)), name
        error = np.std(expected, ddof=1) / np.sqrt(60)
        assert found[f"{name}_stderr"] == pytest.approx(error), name


@torch.no_grad()
def continue_greedily(llama: Any, context: str, count: int) -> str:
    tokens = make_tokenizer().encode(context).ids
    for _ in range(count):
        tokens.append(int(llama(torch.tensor([tokens])).logits[0, -1].argmax()))
    return str(make_tokenizer().decode(tokens))[len(context) :]


def test_completions_are_right_where_they_are_the_likeliest(
    folder: Path, llama: Any, tmp_path: Path
) -> None:
    items: list[dict[str, Any]] = []
    for text in make_texts(40, mean_words=6)[1:]:
        greedy = continue_greedily(llama, text, 2)
        items += [{"prompt": text, "expected": greedy}, {"prompt": text, "expected": "quick fox"}]
    scored = [score_plainly(llama, item["prompt"], item["expected"]) for item in items]
    rights = [is_greedy for _, is_greedy in scored]
    assert 0 < sum(rights) < len(rights)
    path = write_lines(tmp_path / "completions.jsonl", items)
    found = run_task(folder, path, "--delimiter", "")
    assert (found["kind"], found["items"]) == ("completions", len(items))
    assert found["acc"] == pytest.approx(np.mean(rights))
    mean = np.mean([logprob for logprob, _ in scored])
    assert found["perplexity"] == pytest.approx(np.exp(-mean), rel=1e-4)
    assert "acc_norm" not in found


def make_shots(questions: list[dict[str, Any]], chosen: list[int]) -> str:
    """Questions with their right answers, as lm-evaluation-harness writes them."""
    texts = []
    for number in chosen:
        found = questions[number]
        answer = found["answer"]
        right = found["choices"][answer] if isinstance(answer, int) else answer
        texts.append(f"{found['question']} {right}\n\n")
    return "".join(texts)


def test_shots_are_the_first_other_items_with_their_answers(folder: Path, tmp_path: Path) -> None:
    """As where they are written into the file: its own first ones, or those of another file."""
    questions = [q for q in make_questions() if len(q["question"]) < 60][:14]
    questions.append(dict(questions[1], note="the same again, and so no shot of it"))
    others = make_questions()[-4:]
    path = write_lines(tmp_path / "questions.jsonl", questions)
    other = write_lines(tmp_path / "others.jsonl", others)

    def check(options: tuple[object, ...], before: list[str]) -> dict[str, Any]:
        written = [
            q | {"question": shots + q["question"]}
            for q, shots in zip(questions, before, strict=True)
        ]
        expected = run_task(folder, write_lines(tmp_path / "written.jsonl", written))
        found = run_task(folder, path, *options)
        assert found | {"task": ""} == expected | {"task": ""}
        return found

    own = {0: [1, 2], 1: [0, 2], 14: [0, 2]}
    before = [make_shots(questions, own.get(number, [0, 1])) for number in range(15)]
    assert check(("--shots", 2), before)["cut_items"] < 15
    check(("--shots", 3, "--shots-from", other), 15 * [make_shots(others, [0, 1, 2])])
    # Drawn ones are the same again, and others for other items and with another seed.
    pools = {seed: [draw(path, number, seed) for number in range(15)] for seed in (1, 2)}
    assert pools[1] != pools[2]
    assert len({*map(tuple, pools[1])}) > 5
    check(("--shots", 2, "--shots-seed", 1), [make_shots(questions, c) for c in pools[1]])


@pytest.mark.parametrize("seed", [None, 1])
def test_shots_of_many_items_are_found_in_seconds(seed: int | None) -> None:
    items = [Item(line, f"{line}?", ("yes", "no"), 0) for line in range(4000)]
    started = time.process_time()
    found = add_shots(Task("many", "choices", items), Shots(1, None, seed), " ").items
    assert time.process_time() - started < 10  # Comparing each with each took 40.
    assert not any(item.context.startswith(f"{line}?") for line, item in enumerate(found))
    assert all(item.context.endswith(f"? yes\n\n{line}?") for line, item in enumerate(found))


def draw(path: Path, number: int, seed: int) -> list[int]:
    """The places of the two shots that are drawn for an item; it is not among them."""
    task = read_task(str(path))
    context = add_shots(task, Shots(2, None, seed), " ").items[number].context
    texts = [f"{item.context} {item.right}\n\n" for item in task.items]
    own = texts[number]
    pairs = [
        [first, second]
        for first, one in enumerate(texts)
        for second, two in enumerate(texts)
        if first != second and own not in (one, two)
        if context == one + two + task.items[number].context
    ]
    assert pairs
    return pairs[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shots", 2), "task.jsonl: has only 1 items besides that of line 1"),
        (("--shots", 1, "--shots-from", "DIR/other.jsonl"), "has completions, but "),
        (("--shots-seed", 1), "--shots-from and --shots-seed say which items --shots N takes"),
    ],
)
def test_shots_that_are_not_there(
    folder: Path, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    items = [{"question": text, "choices": ["b", "c"], "answer": 0} for text in ("a", "d")]
    path = write_lines(tmp_path / "task.jsonl", items)
    write_lines(tmp_path / "other.jsonl", [{"prompt": "a", "expected": "b"}])
    words = [str(option).replace("DIR", str(tmp_path)) for option in options]
    code, output, errors = velocity("eval", "--ckpt", folder, "--task", path, *words)
    assert (code, output) == (1, "")
    assert said in errors
    assert len(errors.splitlines()) == 1


def test_contaminated_items_are_found_and_left_out(folder: Path, tmp_path: Path) -> None:
    """Of each document there is an item with 20 of its words, and one with them backwards."""
    texts = [text for text in make_texts(40, seed=5, mean_words=50) if len(text.split()) > 30]
    write_set(tmp_path / "set", TOKENIZER_JSON, texts, "<|endoftext|>", shard_tokens=1500)
    build_index(tmp_path / "set", lambda line: None)
    generator = random.Random(2)
    questions, seen = [], []
    for number, text in enumerate(texts):
        words = text.split(" ")[5:25]
        parts = " ".join(words), " ".join(reversed(words))
        for is_copied, part in zip((True, False), parts, strict=True):
            choices = ["no", " ".join(generator.choices(WORDS, k=3))]
            questions.append({"question": part, "choices": choices, "answer": number % 2})
            seen.append(is_copied and split_of(number) == "train")
    assert "validation" in {split_of(number) for number in range(len(texts))}
    path = write_lines(tmp_path / "questions.jsonl", questions)
    options = ("--contamination", tmp_path / "set", "--ngram", 40)
    found = run_task(folder, path, *options)
    assert found["contaminated_items"] == sum(seen)
    assert found["clean"]["items"] == len(seen) - sum(seen)
    clean = [q for q, is_seen in zip(questions, seen, strict=True) if not is_seen]
    alone = run_task(folder, write_lines(tmp_path / "clean.jsonl", clean))
    for name in ("acc", "acc_norm", "acc_bytes", "acc_norm_stderr"):
        assert found["clean"][name] == pytest.approx(alone[name]), name
    # A row of more tokens than any copy has is nowhere.
    assert run_task(folder, path, *options[:-1], 400)["contaminated_items"] == 0
    code, output, errors = velocity("eval", "--ckpt", folder, "--task", path, *options)
    assert code == 0, errors
    assert f"without {sum(seen)} in the training set" in output


def test_a_short_item_is_found_as_a_whole_and_inside_a_document(tmp_path: Path) -> None:
    write_set(tmp_path / "set", TOKENIZER_JSON, ["jumps over the fox", "a dog"], "<|endoftext|>")
    build_index(tmp_path / "set", lambda line: None)
    tokenizer = make_tokenizer()
    # With a space before it, it has other tokens.
    assert tokenizer.encode(" the fox").ids[-2:] != tokenizer.encode("the fox").ids[:2]
    items = [Item(1, "the", (answer,), 0) for answer in ("fox", "dog")]
    items += [Item(3, "a", ("dog",), 0), Item(4, "", ("jumps over the fox", "the dog"), 1)]
    contamination = Contamination(tmp_path / "set", 13, " ")
    assert contamination.find_clean(items) == [False, True, False, True]


def test_what_is_no_item_is_told_with_its_line(folder: Path, tmp_path: Path) -> None:
    good = '{"question": "a", "choices": ["b", "c"], "answer": 0}'
    cases = {
        "": "no items in it",
        "{": "line 1: not valid JSON",
        f"{good}\n\n[]": "line 3: expected a JSON object",
        '{"question": "a", "choices": ["b"], "answer": 0}': 'line 1: expected {"question"',
        '{"question": "a", "choices": ["b", "c"], "answer": 2}': 'line 1: "answer" is 2',
        '{"question": "a", "choices": ["b", "c"], "answer": true}': 'line 1: "answer" is True',
        '{"question": "a", "choices": ["b", "b"], "answer": "b"}': "line 1: \"answer\" is 'b'",
        '{"prompt": "a", "expected": ""}': 'line 1: expected {"question"',
        f'{good}\n{{"prompt": "a", "expected": "b"}}': "line 2: has completions, but the lines",
        json.dumps({"prompt": "a", "expected": "quick " * 200}): "line 1: a choice has",
    }
    path = tmp_path / "task.jsonl"
    for content, words in cases.items():
        path.write_text(content)
        code, output, errors = velocity("eval", "--ckpt", folder, "--task", path)
        assert (code, output) == (1, ""), content
        assert words in errors, content
    path.write_text(good)
    write_set(tmp_path / "set", TOKENIZER_JSON, make_texts(12), "<|endoftext|>")
    options = ("--task", path, "--contamination", tmp_path / "set")
    code, _, errors = velocity("eval", "--ckpt", folder, *options)
    assert code == 1
    assert "velocity shards index" in errors
