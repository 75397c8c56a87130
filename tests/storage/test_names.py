"""Folder names: different for different keys, whatever the file system tells apart."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.storage import folder_name

keys = st.one_of(
    st.text(max_size=40),
    st.text("aAbB-_=.0123456789", max_size=12),
    st.builds(lambda key: folder_name(key), st.text(max_size=10)),
)


@given(keys, keys)
def test_different_keys_have_different_names(a, b):
    one, other = (unicodedata.normalize("NFKC", folder_name(key)).casefold() for key in (a, b))
    assert (one == other) == (a == b)


@given(keys)
def test_a_name_is_fit_for_any_file_system(key):
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", folder_name(key))
    assert len(folder_name(key)) < 100 and folder_name(key) not in {"con", "nul", "com1"}


@pytest.mark.parametrize("key", ["valley", "wing-3", "2024-05-01", "0c9f9d50-7d8f-4f0e-8f5e-1234567890ab"])
def test_a_good_name_stays_what_it_is(key):
    assert folder_name(key) == key


@pytest.mark.parametrize(("a", "b"), [("aoa=2", "aoa=-2"), ("0.5", "-0.5"), ("α", "β"), ("A", "a"), ("a b", "a-b")])
def test_names_that_were_one(a, b):
    assert folder_name(a) != folder_name(b)


def test_it_is_readable():
    assert folder_name("aoa = 2").startswith("aoa-2-")
