"""The `velocity sample` and `velocity chat` commands."""

import sys
from dataclasses import replace
from secrets import randbelow

from model.checkpoints.hub import fetch
from model.decode.settings import Settings
from model.sample.options import Chat, CkptOption, Loading, Output, Prompts
from shards.entry.options import takes_options
from shards.screen.lines import open_output, say


@takes_options
def sample(
    ckpt: CkptOption, source: Prompts, settings: Settings, output: Output, loading: Loading
) -> None:
    """Generate text from a checkpoint; on a terminal and without a prompt, ask for prompts."""
    from model.sample.console import write_texts
    from model.sample.json_lines import write_json
    from model.sample.over_run import write_over_run
    from model.sample.prompts import read_prompts
    from model.sample.repl import Console, Repl, run_repl

    output.check(settings)
    settings = settings.read_escapes()
    if settings.seed is None and (output.all or output.as_json):
        settings = replace(settings, seed=randbelow(2**32))  # Each text can be written again.
    load, ckpt = loading.make_load(), fetch(ckpt, say)
    asks = source.is_empty and sys.stdin.isatty() and sys.stdout.isatty()
    if asks and not output.all and not output.as_json:
        console = Console(open_output(), say, streams=output.stream)
        run_repl(Repl(load(ckpt), settings, console), "sample")
        return
    prompts, show = read_prompts(source, say), open_output()
    if output.all:
        words, as_json = output.continuation, output.as_json
        write_over_run(ckpt, load, prompts, settings, show, say, words, as_json)
    elif output.as_json:
        write_json(load(ckpt), prompts, settings, show)
    else:
        write_texts(load(ckpt), prompts, settings, show, say, output.stream)


@takes_options
def chat(ckpt: CkptOption, opening: Chat, settings: Settings, loading: Loading) -> None:
    """Chat with a model that was trained on chats; a pipe gives a message on each line."""
    opening.check(settings)
    from model.generate import load_generator
    from model.sample.chat import ChatRepl, chat_over_lines, open_conversation
    from model.sample.repl import Console, run_repl

    settings, show = settings.read_escapes(), open_output()
    generator = load_generator(ckpt, loading.device, dtype=loading.dtype, base=loading.base)
    with open_conversation(generator, opening, say) as conversation:
        if sys.stdin.isatty() and sys.stdout.isatty() and not opening.as_json:
            repl = ChatRepl(conversation, settings, Console(show, say, streams=opening.stream))
            run_repl(repl, "chat")
        else:
            lines, streams = sys.stdin.buffer, opening.stream
            chat_over_lines(conversation, settings, lines, show, opening.as_json, streams)
