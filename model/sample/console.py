"""Writes the generated texts, with what a reader could not see in them: where each begins and ends.

`show` writes a piece of output at once, `say` a line that is not output.
"""

from collections.abc import Callable, Sequence

from model.decode.draft import Completion, Draft
from model.decode.generator import Generator
from model.decode.settings import Settings

Show = Callable[[str], None]


def write_texts(
    generator: Generator,
    prompts: Sequence[str],
    settings: Settings,
    show: Show,
    say: Show,
    streams: bool = True,
) -> None:
    """Write the texts that continue the prompts, the prompts included, as `write_drafts` does."""
    write_drafts(generator, generator.start(prompts, settings), show, say, streams)


def write_drafts(
    generator: Generator, drafts: Sequence[Draft], show: Show, say: Show, streams: bool = True
) -> None:
    """Write drafts to their ends; what has been written is in them even if this is interrupted.

    A single text appears as it is generated; several appear, each under a heading, once all are
    done.
    """
    is_shown = streams and len(drafts) == 1
    if is_shown:
        show(drafts[0].text)
    for _, piece in generator.write(drafts):
        if is_shown:
            show(piece)
    completions = [draft.complete() for draft in drafts]
    if len(drafts) > 1:
        for number, completion in enumerate(completions):
            num_samples = drafts[number].settings.num_return_sequences
            show(describe_place(number, num_samples, completion) + "\n")
            show(completion.text + "\n")
        return
    [completion] = completions
    show("\n" if is_shown else completion.text + "\n")
    if completion.finish_reason == "context":
        say(
            f"velocity: the text ends here because the model's context, {generator.context:,} "
            "tokens, is full"
        )


def describe_place(number: int, num_samples: int, completion: Completion) -> str:
    """The heading above one of several texts.

    >>> describe_place(3, 2, Completion("", (1, 2, 3), 1, "length"))
    '--- prompt 2, sample 2: 2 tokens, ended by length ---'
    """
    prompt, sample = divmod(number, num_samples)
    return f"--- prompt {prompt + 1}, sample {sample + 1}: {describe_end(completion)} ---"


def describe_end(completion: Completion) -> str:
    """How long a text became, and why it ended."""
    num_tokens = len(completion.tokens) - completion.num_prompt_tokens
    return f"{num_tokens} tokens, ended by {completion.finish_reason.replace('_', ' ')}"
