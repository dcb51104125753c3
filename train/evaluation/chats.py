"""Tasks put to a model that was trained on chats: a context is a message, a choice its answer.

Both become tokens as in training, by the checkpoint's chat template, and the end of the turn counts
to the answer: a completion is right only if the model ends there.
"""

from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from model.chat.encode import Chat, ChatEncoder, EncodedChat
from model.chat.template import RendererCrash, find_template
from model.checkpoints.seal import CheckpointError
from train.evaluation.items import Task
from train.evaluation.tasks import Asked, EncodedTask


def encode_chats(folder: Path, tokenizer: Tokenizer, context: int, task: Task) -> EncodedTask:
    """The task in the tokens of a folder's chat template.

    CheckpointError for a folder without one; ValueError, naming file and line, for an item that the
    template does not take or that is longer than the model's context.
    """
    template = find_template(folder)
    if template is None:
        raise CheckpointError(
            f"{folder}: has no chat template, so it was not trained on chats; leave out --chat"
        )
    chats = [
        Chat([{"role": "user", "content": i.context}, {"role": "assistant", "content": text}])
        for i in task.items
        for text in i.choices
    ]
    try:
        found = iter(ChatEncoder(template, tokenizer.to_str()).encode(chats))
    except RendererCrash as error:
        raise ValueError(
            f"{folder}: the process that runs the chat template crashed: {error}"
        ) from None
    finally:
        template.close()
    asked = []
    for number, item in enumerate(task.items):
        for encoded in islice(found, len(item.choices)):
            place = f"{task.name}: line {item.line:,}"
            if not isinstance(encoded, EncodedChat):
                raise ValueError(f"{place}: the chat template does not take it: {encoded}")
            begin, end = encoded.spans[-1].tolist()
            if end > context + 1:
                raise ValueError(
                    f"{place}: question and answer have {end:,} tokens; the model's context is "
                    f"{context:,}"
                )
            asked.append(Asked(number, encoded.ids[:end].tolist(), end - begin, is_cut=False))
    return EncodedTask(task, asked)
