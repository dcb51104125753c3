"""Secrets that a command was given: learned from its words and its environment, and hidden.

A URL is shown without its secrets by show_url. This is for all other texts: a library's error may
hold a part of a URL, or what it was decoded to.
"""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from shards.screen.url import show_urls

MASK = "***"
# Shorter ones would also hide words that only look like them.
MIN_KEY_CHARS = 4
MIN_USER_CHARS = 8
SECRET_NAMES = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY|ACCESS_KEY_ID)$")
URL_START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")
# Keys that are known by their form: in an error about a request's headers, say.
KEY_FORMS = re.compile(r"\bhf_\w{16,}|(?<=Bearer )[^\s'\"]+|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
# In the query of a storage's URL, these say where the storage is.
OPEN_QUERY = {"region", "scheme", "endpoint_override", "retry_limit_seconds", "project_id"}

_known: set[str] = set()


def forget() -> None:
    """Forget what was learned: another command begins."""
    _known.clear()


def learn_words(words: Iterable[str]) -> None:
    """Learn the keys in words of a command line, or in lines of a settings file."""
    for word in words:
        _learn(find_keys(word))


def learn_environment(variables: Mapping[str, str]) -> None:
    """Learn tokens and keys by their variables' names, and those in URLs, such as proxies'."""
    for name, value in variables.items():
        if SECRET_NAMES.search(name.upper()) and len(value) >= MIN_USER_CHARS:
            _learn({value})
        elif URL_START.match(value):
            _learn(find_keys(value))


def hide_known(text: str) -> str:
    """A text without the secrets that were learned."""
    for secret in sorted(_known, key=len, reverse=True):
        pattern = re.escape(secret)
        if len(secret) < MIN_USER_CHARS:  # As a word: "test" is not hidden in "latest".
            pattern = rf"(?<!\w){pattern}(?!\w)"
        text = re.sub(pattern, MASK, text)
    return text


def hide(text: str) -> str:
    """A text without the secrets that were learned, and without any that a URL in it holds."""
    return show_urls(KEY_FORMS.sub(MASK, hide_known(text)))


def find_keys(word: str) -> set[str]:
    """User and key of the URL in a word, their parts, and values of its query.

    >>> sorted(find_keys("data.shards=s3://key:secret/5ad@bucket/set"))
    ['secret', 'secret/5ad']
    """
    start = URL_START.search(word)
    if not start and re.search(r"\s", word):
        return set()
    rest = word[start.end() :] if start else word.rpartition("=")[2]
    info, at, place = rest.rpartition("@")
    user, colon, key = info.partition(":")
    if at and not colon:
        user = info.partition("@")[0]
    found = {user} if at and "/" not in user and len(user) >= MIN_USER_CHARS else set()
    if at and colon:
        found |= {part for part in (key, *re.split("[:/@]", key)) if len(part) >= MIN_KEY_CHARS}
    if start and not start[0].lower().startswith("http"):
        for entry in (place or rest).partition("?")[2].split("&"):
            name, _, value = entry.partition("=")
            if name not in OPEN_QUERY and len(value) >= MIN_KEY_CHARS:
                found.add(value)
    return found


def _learn(found: set[str]) -> None:
    for secret in found:
        # As it was typed, decoded by a library, encoded by one, and as a Path has it.
        _known.update(
            (
                secret,
                unquote(secret),
                quote(secret, safe="", errors="replace"),
                re.sub("/+", "/", secret),
            )
        )
