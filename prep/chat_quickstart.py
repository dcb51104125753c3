"""`velocity quickstart --chat`: the quickstart's model learns to answer questions about Python.

    make_questions -> velocity prep --chat -> torchrun -m train --config sft -> velocity eval, chat

Exact match is measured on questions that were held out, before and after; prep/python_questions.py
says what they can show.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from prep.python_questions import Kind, Question, make_questions, score_constant, write_questions
from prep.quickstart import read_command, run_command
from shards.screen.lines import align, put
from shards.screen.names import quote

Scores = dict[Kind, float]
KINDS: dict[Kind, str] = {
    "fact": "known facts, in words that were seen with other facts alone",
    "rule": "what the question itself tells, about names never seen",
}
# Found by trying on two cores: in a few minutes, more of either learns no more.
SETTINGS = (
    "training.precision=fp32",
    "training.optimizer=muon",
    "training.learning_rate=5e-3",
    "training.muon_learning_rate=4e-3",
    "training.epochs=5",
    "training.global_batch_tokens=512",
    "training.warmup_steps=20",
    "training.eval_steps=100",
    "training.logging_steps=20",
    "training.save_total_limit=1",
)
ROW_TOKENS = 256
SHOTS = 3
# How much more than before, and than one answer to all, must be right to count as learning.
REQUIRED_SHARE = 0.3


def run_chat_quickstart(out: Path, overrides: Sequence[str] = ()) -> None:
    """Fine-tune the quickstart's model in `out`; ValueError if a command fails or it did not learn.

    `overrides` are further settings of the run, as `section.key=value`.
    """
    base, shards, checkpoints = out / "checkpoints", out / "chat-shards", out / "chat-checkpoints"
    chats = out / "chats.jsonl"
    tasks: dict[Kind, Path] = {kind: out / f"held-out-{kind}s.jsonl" for kind in KINDS}
    questions = make_questions()
    write_questions(questions, chats, tasks)
    num_held_out = sum(question.is_held_out for question in questions)
    put(f"{chats}: {len(questions) - num_held_out:,} questions about Python, with their answers")
    put(f"{num_held_out:,} more are held out")
    put("")
    options = [word for path in tasks.values() for word in ("--task", str(path))]
    # A base model is shown what an answer is like: it goes on with examples.
    before = run_eval("velocity", "eval", "--ckpt", base, *options, "--shots", str(SHOTS))
    run_command(
        *("velocity", "prep", "--chat", "--input", chats, "--out", shards),
        *("--pack-tokens", str(ROW_TOKENS), "--validation-fraction", "0.05"),
    )
    run_command(
        *("torchrun", "--nproc_per_node", "1", "-m", "train", "--config", "sft"),
        *(f"data.shards={shards}", f"model.start={base}"),
        f"infrastructure.output_dir={checkpoints}",
        f"infrastructure.logging_dir={out / 'chat-logs'}",
        *SETTINGS,
        *overrides,
    )
    after = run_eval("velocity", "eval", "--ckpt", checkpoints, *options, "--chat")
    run_command(
        *(
            "velocity",
            "chat",
            "--ckpt",
            checkpoints,
            "--temperature",
            "0",
            "--max-new-tokens",
            "30",
        ),
        lines=choose_samples(questions),
    )
    for line in align([*tabulate_scores(questions, before, after)]):
        put(line)
    for line in ["", "next:", f"  velocity chat --ckpt {quote(checkpoints)}"]:
        put(line)
    check_scores(questions, before, after)


def run_eval(*words: str | Path) -> Scores:
    """The share of each kind's questions that a checkpoint answers exactly."""
    report = json.loads(read_command(*words, "--json"))
    put("")
    return {kind: task["acc"] for kind, task in zip(KINDS, report["tasks"], strict=True)}


def choose_samples(questions: Sequence[Question]) -> list[str]:
    """Held-out questions to show: the first of each family."""
    held_out = [question for question in questions if question.is_held_out]
    first = {question.family: question.question for question in reversed(held_out)}
    return [first[family] for family in sorted(first)]


def tabulate_scores(
    questions: Sequence[Question], before: Scores, after: Scores
) -> Iterator[list[str]]:
    """A row of each kind: how many questions, and which share was answered exactly."""
    yield ["exact match on held-out questions", "questions", "before", "one answer", "after"]
    for kind, name in KINDS.items():
        number = sum(question.is_held_out and question.kind == kind for question in questions)
        shares = before[kind], score_constant(questions, kind), after[kind]
        yield [name, str(number), *(f"{share:.1%}" for share in shares)]


def check_scores(questions: Sequence[Question], before: Scores, after: Scores) -> None:
    """ValueError if the model answers hardly better than before, or than one answer to all."""
    for kind, name in KINDS.items():
        needed = max(before[kind], score_constant(questions, kind)) + REQUIRED_SHARE
        if after[kind] < needed:
            raise ValueError(
                f"{name}: {after[kind]:.1%} are right, expected at least {needed:.1%}: the model "
                "did not learn; please report this with the output above"
            )
