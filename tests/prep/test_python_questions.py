"""The questions of `velocity quickstart --chat`: they are true, and what is held out is unseen."""

import builtins
import json
import sysconfig
from pathlib import Path

import pytest

from prep.python_docs import find_modules, name_module
from prep.python_questions import (
    WORDINGS,
    Question,
    make_questions,
    score_constant,
    write_questions,
)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return make_questions()


def find_name(question: Question) -> str:
    """What is asked about."""
    for wording in WORDINGS[question.family]:
        before, after = wording.split("{}")
        text = question.question
        if text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
    raise AssertionError(question)


def test_the_same_python_asks_the_same(questions: list[Question]) -> None:
    assert questions == make_questions()
    assert len(questions) > 2000
    assert {q.family for q in questions} == WORDINGS.keys()


def test_no_held_out_question_is_trained_on(questions: list[Question]) -> None:
    trained = {q.question for q in questions if not q.is_held_out}
    held_out = {q.question for q in questions if q.is_held_out}
    assert len(trained) + len(held_out) == len(questions)
    assert not trained & held_out


def test_a_held_out_fact_is_known_and_its_words_are_seen_with_others(
    questions: list[Question],
) -> None:
    for family in ("module", "base", "type"):
        own = [q for q in questions if q.family == family]
        known = {(find_name(q), q.answer) for q in own if not q.is_held_out}
        asked = [q for q in own if q.is_held_out]
        assert {(find_name(q), q.answer) for q in asked} == known
        assert len(asked) == len(known)
        for wording in WORDINGS[family]:
            before, after = wording.split("{}")
            seen = {
                q.is_held_out
                for q in own
                if q.question.startswith(before) and q.question.endswith(after)
            }
            assert seen == {True, False}, wording


def test_the_names_of_held_out_rules_are_in_no_question_of_their_family(
    questions: list[Question],
) -> None:
    for family in ("dotted", "case"):
        own = [q for q in questions if q.family == family]
        names = {h: {find_name(q) for q in own if q.is_held_out == h} for h in (True, False)}
        assert len(names[True]) > 50
        assert not names[True] & names[False]


def test_the_answers_are_true(questions: list[Question]) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    sources = {
        name_module(path.relative_to(library)): path.read_text("utf-8", "replace")
        for path in find_modules(library)
    }
    for question in questions:
        name, answer = find_name(question), question.answer
        if question.family == "base":
            assert getattr(builtins, name).__bases__[0].__name__ == answer
        elif question.family == "type":
            assert callable(getattr(getattr(builtins, answer), name))
        elif question.family == "dotted":
            assert name.rpartition(".")[0] == answer
        elif question.family == "module":
            source = sources[answer]
            assert f"def {name}(" in source or f"class {name}" in source
        else:
            kind = {"a class": "class", "a function": "def"}[answer]
            assert any(f"\n{kind} {name}" in source for source in sources.values())


def test_chats_and_tasks_hold_each_question_once(questions: list[Question], tmp_path: Path) -> None:
    chats, facts, rules = (tmp_path / name for name in ("chats", "facts", "rules"))
    write_questions(questions, chats, {"fact": facts, "rule": rules})
    pairs, sizes = [], set()
    for line in chats.read_text().splitlines():
        messages = json.loads(line)["messages"]
        sizes.add(len(messages) // 2)
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            assert (question["role"], answer["role"]) == ("user", "assistant")
            pairs.append((question["content"], answer["content"]))
    assert sorted(pairs) == sorted((q.question, q.answer) for q in questions if not q.is_held_out)
    assert sizes == {1, 2, 3}
    for kind, path in (("fact", facts), ("rule", rules)):
        items = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(i["prompt"], i["expected"]) for i in items] == [
            (q.question, q.answer) for q in questions if q.is_held_out and q.kind == kind
        ]


def test_one_answer_to_all_is_the_commonest_of_those_trained_on() -> None:
    def ask(family: str, answer: str, is_held_out: bool) -> Question:
        return Question(family, "fact", "?", answer, is_held_out)

    trained = [ask("a", "x", False)] * 2 + [ask("a", "y", False), ask("b", "z", False)]
    asked = [ask("a", "x", True), ask("a", "y", True), ask("a", "y", True), ask("b", "z", True)]
    assert score_constant([*trained, *asked], "fact") == 2 / 4
