"""The training command's words: options and settings in any order; hints where one is misspelt."""

import argparse
import difflib
import shlex
from typing import NoReturn

from train.settings import RECIPES, list_named_configs


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are ValueErrors, as all others here."""

    def error(self, message: str) -> NoReturn:
        """Raise it, with where the options are listed."""
        raise ValueError(f"{message}; -m train --help lists the options")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; ValueError for an option that is none."""
    parser = Parser(
        prog="torchrun --nproc_per_node N -m train",
        description="Train on the shards that velocity prep made. Run the same command again to "
        "resume from the last checkpoint.",
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help=f"settings: a YAML file, or one of {', '.join([*list_named_configs(), *RECIPES])}; "
        "the default is the 1.7 B model; `list` shows what each needs",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings to override"
    )
    parsed, unknown = parser.parse_known_intermixed_args(arguments)
    # To argparse, words with a blank are no options.
    unknown += [word for word in parsed.overrides if word.startswith("-")]
    if unknown:
        parser.error(describe_unknown(unknown[0], ["--config", "--debug", "--help"]))
    return parsed


def describe_unknown(word: str, options: list[str]) -> str:
    """What is wrong with an option that is none, and what may have been meant.

    >>> describe_unknown("--training.warmup_steps=5", ["--config"])
    '--training.warmup_steps=5: settings have no dashes: training.warmup_steps=5'
    >>> describe_unknown("--confg", ["--config"])
    '--confg: no such option; did you mean --config?'
    """
    name = word.partition("=")[0]
    if "." in name:
        setting = word.lstrip("-")
        hint = shlex.quote(setting) if "=" in setting else f"{setting}=VALUE"
        return f"{word}: settings have no dashes: {hint}"
    nearest = difflib.get_close_matches(name, options, n=1)
    return f"{word}: no such option" + (f"; did you mean {nearest[0]}?" if nearest else "")
