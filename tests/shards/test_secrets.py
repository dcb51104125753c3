"""Secrets that reach no screen, in whatever form of URL they came."""

import re
from pathlib import Path

import pytest

from prep.remote.retry import SourceError
from shards.exchange.storage import open_storage
from shards.screen import secrets
from shards.screen.secrets import hide, learn_environment, learn_words
from shards.screen.url import is_url, name_folder, read_place, restore_url, show_url, show_urls

# Pieces that no text may hold.
KEYS = ("SECRETKEY", "ETKEY")
WRONG_URLS = [
    "s3://AKIA:SECR/ETKEY@bucket/set",
    "s3://AKIA:SECR//ETKEY@bucket/set",
    "s3://AKIA:SECRETKEY@buck et/set",
    "s3://AKIA:SECR ETKEY@bucket/set",
    "s3://AKIA:SE@ETKEY@bucket/set",
    "s3://AKIA:SE?ETKEY#ETKEY@bucket",
    "s3://AKIA:SECRETKEY@",
    "s3://AKIA:SECRETKEY",
    "s3://AKIA:SECRETKEY/bucket/set",
    "s3://AKIA%3ASECRETKEY%40bucket/set",
    "s3:AKIA:SECRETKEY@bucket/set",
    "AKIA:SECRETKEY@bucket/set",
    "//AKIA:SECRETKEY@bucket/set",
    " gs://AKIA:SECR/ETKEY@bucket/set",
    "file://user:SECRETKEY@host/set",
    "file:///user:SECRETKEY@host/set",
    "FILE://SECRETKEY@host/set",
    "https://u:SECR/ETKEY@127.0.0.1:9/x",
]
RIGHT_URLS = [
    "s3://AKIA:SECRETKEY@bucket/set",
    "S3://AKIA:SECRETKEY@bucket/Set",
    "s3:///AKIA:SECRETKEY@bucket/set",
    "s3://AKIA:SECR%2FETKEY@bucket/set",
    "s3://AKIA:SECRETKEY@bucket/set?region=%zz",
    "s3://bucket/set?unknown=SECRETKEY",
    "gs://SECRETKEY@bucket/set",
    "https://u:SECRETKEY@127.0.0.1:9/x?token=SECRETKEY",
    "nosuch://u:SECRETKEY@host/x#SECRETKEY",
]


@pytest.fixture(autouse=True)
def unlearned() -> None:
    """What one test learned hides nothing in another."""
    secrets.forget()


def assert_clean(text: str) -> None:
    assert not [key for key in KEYS if key in text], text


@pytest.mark.parametrize("url", [*RIGHT_URLS, *WRONG_URLS])
def test_a_url_is_shown_without_its_keys_as_typed_and_as_a_path(url: str) -> None:
    for name in (url, Path(url)):
        assert is_url(name)
        assert_clean(show_url(name))
        assert_clean(name_folder(str(name)))


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_malformed_url_is_refused_in_one_clean_line(url: str) -> None:
    with pytest.raises(OSError, match=r"expected|%2F|not a folder's URL") as caught:
        read_place(url)
    assert_clean(str(caught.value))
    with pytest.raises(ValueError, match=re.escape(str(caught.value))):
        open_storage(url)


def test_the_library_that_opens_a_url_is_quoted_without_its_keys() -> None:
    for url in RIGHT_URLS[4:6] + RIGHT_URLS[7:]:
        with pytest.raises(ValueError, match="is not a folder's URL") as caught:
            open_storage(url)
        assert_clean(str(caught.value))


@pytest.mark.parametrize("url", [*RIGHT_URLS[:5], *WRONG_URLS])
def test_what_was_learned_is_hidden_in_any_text(url: str) -> None:
    learn_words(["velocity", f"--out={url}" if url.startswith("s3") else url])
    key = url.rpartition("@")[0].partition("://")[2].rpartition(":")[2]
    for form in (url, str(Path(url)), str(Path("/home/me") / url), f"Cannot parse URI: '{url}'"):
        assert_clean(hide(f"no such thing: {form}; try again"))
    if len(key) > 4:
        assert_clean(hide(f"bad credentials {key}"))


def test_keys_of_settings_files_and_the_environment_are_learned() -> None:
    learn_words(['  shards: "s3://AKIA:SECR/ETKEY@bucket/set"'])
    assert_clean(hide("line 3: found SECR/ETKEY"))
    learn_environment(
        {
            "HTTPS_PROXY": "http://me:SECRETKEY-1@proxy:3128",
            "HF_ENDPOINT": "https://SECRETKEY-2@mirror",
            "WANDB_API_KEY": "SECRETKEY-3",
            "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json",
        }
    )
    for number in (1, 2, 3):
        assert_clean(hide(f"refused: SECRETKEY-{number}."))
    assert hide("/home/me/key.json: no such file") == "/home/me/key.json: no such file"


def test_a_short_key_hides_only_itself() -> None:
    learn_words(["s3://user:test@bucket/set"])
    assert hide("the latest test of a user") == "the latest *** of a user"


def test_signed_urls_and_tokens_are_hidden_though_nobody_learned_them() -> None:
    token = "hf_" + "a1B2" * 8
    assert hide(f"Illegal header value b'Bearer {token}'") == "Illegal header value b'Bearer ***'"
    assert hide(f"token {token} is invalid") == "token *** is invalid"
    error = SourceError(
        "a.parquet: 403 for url 'https://cdn.example.com/ab?X-Amz-Signature=5ad&x=y'"
    )
    assert str(error) == "a.parquet: 403 for url 'https://cdn.example.com/ab?...'"


def test_other_urls_in_a_text_stay_as_they_are() -> None:
    for text in (
        "s3://bucket/set: no such file",
        "s3://bucket: there is no such bucket; check its name",
        "hf://datasets/owner/name@5ad/data/a.parquet (1 of 2)",
        "see http://127.0.0.1:8080/datasets/owner/name, then file:///mnt/set/",
        "C:/Users/me: not a folder",
    ):
        assert show_urls(text) == text


def test_urls_keep_their_case_and_their_meaning() -> None:
    assert restore_url(Path("S3://Bucket/Set")) == "s3://Bucket/Set"
    assert restore_url("FILE:///mnt/Set") == restore_url(Path("file:/mnt/Set")) == "file:///mnt/Set"
    assert name_folder("s3://key:secret@bucket/a/set/") == "set"
    assert name_folder("s3://bucket/..") == "shards"
    for path in ("runs/a:b@c", "C:/me@home", "/mnt/a@b", "a:b"):
        assert not is_url(path)
