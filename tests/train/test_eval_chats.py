"""`velocity eval --chat`: an answer is right if a chat would be answered so, to its end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints.folder import load_model, save_model
from model.decode.settings import Settings
from model.generate import load_generator
from model.sample.chat import open_conversation
from model.sample.options import Chat
from tests.commands import velocity
from tests.model.test_chat import END, write_folder
from tests.texts import make_texts
from tests.train.test_eval_tasks import write_lines

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that soon ends its turn, often."""
    path = write_folder(tmp_path_factory.mktemp("chat") / "model")
    model = load_model(path, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        model.lm_head.weight[END] *= 3
    kept = {
        name: (path / name).read_bytes() for name in ("tokenizer.json", "generation_config.json")
    }
    save_model(path, model, kept["tokenizer.json"].decode())
    for name, content in kept.items():
        (path / name).write_bytes(content)
    return path


def test_an_answer_is_right_where_a_chat_would_write_it_and_end(
    folder: Path, tmp_path: Path
) -> None:
    items: list[dict[str, Any]] = []
    greedy = Settings(temperature=0, max_new_tokens=NEW_TOKENS)
    num_right = 0
    generator = load_generator(folder, "cpu")
    tokenizer = generator.tokenizer
    with open_conversation(generator, Chat(), print) as conversation:
        for text in make_texts(60, mean_words=6)[1:]:
            conversation.reset()
            turn = conversation.ask(text, greedy, lambda _: None)
            ids = tokenizer.encode(turn.answer).ids
            # Only what is cut into the same tokens again is right.
            if turn.ended_by == "end_of_text" and 1 < len(ids) == turn.num_tokens - 1:
                shorter = tokenizer.decode(ids[:-1])
                items += [{"prompt": text, "expected": turn.answer}]
                num_right += 1
                items += [{"prompt": text, "expected": shorter}] * ("\ufffd" not in shorter)
            items.append({"prompt": text, "expected": "quick fox"})
    assert num_right > 3
    path = write_lines(tmp_path / "answers.jsonl", items)
    code, output, errors = velocity("eval", "--ckpt", folder, "--task", path, "--chat", "--json")
    assert code == 0, errors
    [found] = json.loads(output)["tasks"]
    assert (found["items"], found["cut_items"]) == (len(items), 0)
    assert found["acc"] == pytest.approx(num_right / len(items))


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("one", ["--shots", 1], "--chat is for --task, without --shots; leave out one of them"),
        ("one " * 600, [], "line 1: question and answer have "),
    ],
)
def test_what_cannot_be_put_as_a_chat_is_refused(
    folder: Path, tmp_path: Path, prompt: str, options: list[object], says: str
) -> None:
    path = write_lines(tmp_path / "answers.jsonl", [{"prompt": prompt, "expected": "two"}] * 2)
    code, _, errors = velocity("eval", "--ckpt", folder, "--task", path, "--chat", *options)
    assert (code, errors.count("\n")) == (1, 1)
    assert says in errors


def test_a_folder_without_a_template_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "plain", template=None)
    path = write_lines(tmp_path / "answers.jsonl", [{"prompt": "one", "expected": "two"}])
    code, _, errors = velocity("eval", "--ckpt", folder, "--task", path, "--chat")
    assert (code, "has no chat template" in errors) == (1, True)
