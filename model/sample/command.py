"""The `velocity chat` command."""

import sys

from model.decode.settings import Settings
from model.sample.options import BaseOption, Chat, CkptOption, DeviceOption, DtypeOption
from shards.entry.options import takes_options
from shards.screen.lines import open_output, say


@takes_options
def chat(
    ckpt: CkptOption,
    opening: Chat,
    settings: Settings,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    base: BaseOption = None,
) -> None:
    """Chat with a model that was trained on chats; a pipe gives a message on each line."""
    opening.check(settings)
    from model.generate import load_generator
    from model.sample.chat import ChatRepl, chat_over_lines, open_conversation
    from model.sample.repl import Console, run_repl

    settings, show = settings.read_escapes(), open_output()
    generator = load_generator(ckpt, device, dtype=dtype, base=base)
    with open_conversation(generator, opening, say) as conversation:
        if sys.stdin.isatty() and sys.stdout.isatty() and not opening.as_json:
            repl = ChatRepl(conversation, settings, Console(show, say, streams=opening.stream))
            run_repl(repl, "chat")
        else:
            lines, streams = sys.stdin.buffer, opening.stream
            chat_over_lines(conversation, settings, lines, show, opening.as_json, streams)
