"""Secrets: what is masked, what is not, and that nothing of one is left."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.storage import MASK, is_secret, told_apart, without_secrets, without_tags

ODD = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="'\"<>"), min_size=6, max_size=30)


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "api_token",
        "apiKey",
        "AWS_SECRET_ACCESS_KEY",
        "db.passwd",
        "X-Api-Key",
        "Authorization",
        "authToken",
    ],
)
def test_names_that_say_so_are_secret(name):
    assert is_secret(name)
    assert without_secrets({name: "planted", "n": 1}) == {name: MASK, "n": 1}


@pytest.mark.parametrize("name", ["n_tokens", "key", "run_key", "author", "tokenizer", "passes", "pinned", "monkey"])
def test_others_are_not(name):
    assert not is_secret(name)
    assert without_secrets({name: "planted"}) == {name: "planted"}


@given(ODD, ODD)
def test_nothing_of_a_password_in_an_address_is_left(user, password):
    secret = f"planted{password}"
    for url in (f"http://{user}:{secret}@host:8000/path", f"see s3://{secret}@bucket, please", f"ftp://:{secret}@h"):
        assert "planted" not in without_secrets(url)
        assert "planted" not in str(without_secrets({"a": [url, {"b": url}]}))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://bob:secret@host:8000/x", "http://***@host:8000/x"),
        ("http://bob:se@cret@host", "http://***@host"),
        ("https://host/x?token=abc&n=3", "https://host/x?token=***&n=3"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer ***"),
        ("http://host:8000/x?n=3", "http://host:8000/x?n=3"),
        ("bob@example.com", "bob@example.com"),
        ("http://bob:se/cr#e?t@host:8000", "http://***@host:8000"),
        ("http://[broken", "http://[broken"),
    ],
)
def test_addresses(text, masked):
    assert without_secrets(text) == masked


def test_what_is_no_text_stays_what_it_is():
    value = {"n": 3, "x": 0.5, "on": True, "none": None, "names": ["a", "b"]}
    assert without_secrets(value) == value


@settings(max_examples=15)  # a digest is slow on purpose
@given(ODD, ODD)
def test_a_tag_tells_two_secrets_apart_and_neither(one, other):
    url = "s3://{}@bucket/mesh?n=3"
    for fill in (lambda x: {"token": x, "n": 1}, lambda x: [url.format(f"planted{x}")]):
        a, b = told_apart(fill(one)), told_apart(fill(other))
        assert (a == b) == (fill(one) == fill(other))
        assert a == told_apart(fill(one))
        assert without_tags(str(a)) == str(without_secrets(fill(one)))
        assert "planted" not in str(a)


def test_a_number_has_a_tag_of_its_own_kind():
    """It is a setting rather than a secret, whatever it is called."""
    three, text = told_apart({"n_pin": 3, "pin": "three"}).values()
    assert three != told_apart(5, "n_pin") and three == told_apart(3, "n_pin") == without_tags(three)
    assert without_tags(text) == without_tags(three, numbers_too=True) == MASK
