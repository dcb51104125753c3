"""Writes the generated texts, with what a reader could not see in them: where each begins and ends.

`show` writes a piece of output at once, `say` a line that is not output.
"""

from collections.abc import Callable, Sequence

from model.decode.draft import Completion
from model.decode.generator import Generator
from model.decode.settings import LONE_SURROGATES, Settings
from model.decode.text_stream import REPLACEMENT

Show = Callable[[str], None]


def write_texts(
    generator: Generator,
    prompts: Sequence[str],
    settings: Settings,
    show: Show,
    say: Show,
    streams: bool = True,
) -> None:
    """Write the texts that continue the prompts, the prompts included.

    A single text appears as it is generated; several appear, each under a heading, once all are
    done.
    """
    num_texts = len(prompts) * settings.num_return_sequences
    if num_texts == 1:
        completion = _write_one(generator, prompts[0], settings, show if streams else None)
        show("\n" if streams else completion.text + "\n")
        if completion.finish_reason == "context":
            say(
                f"velocity: the text ends here because the model's context, {generator.context:,} "
                "tokens, is full"
            )
        return
    for number, completion in enumerate(generator.complete(prompts, settings)):
        show(describe_place(number, settings.num_return_sequences, completion) + "\n")
        show(completion.text + "\n")


def _write_one(
    generator: Generator, prompt: str, settings: Settings, show: Show | None
) -> Completion:
    """Complete a prompt; `show`, if given, shows the prompt and then each piece as it comes."""
    drafts = generator.start([prompt], settings)  # What is wrong is said before anything is shown.
    if show is not None:
        show(LONE_SURROGATES.sub(REPLACEMENT, prompt))
    for _, piece in generator.write(drafts):
        if show is not None:
            show(piece)
    return drafts[0].complete()


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
