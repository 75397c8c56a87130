"""From an address to a store, and from a place that may be far away to a folder that a program can write into."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from urllib.parse import unquote, urlsplit

from tesseract_flow.storage.base import AbstractStore
from tesseract_flow.storage.folder import FolderStore
from tesseract_flow.storage.url import UrlStore

# At least two letters: C:// is somebody's drive.
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+(://|::)")


def is_url(address: str | os.PathLike[str]) -> bool:
    """Whether this is an address for fsspec rather than a path; `file://` is a path."""
    return isinstance(address, str) and bool(_URL.match(address)) and not address.startswith("file://")


def open_store(address: str | os.PathLike[str], moments: Callable[[str], None] = lambda moment: None) -> AbstractStore:
    """The store at a path, at a `file://` URL, or at any URL that fsspec knows. Nothing is made or asked yet.

    Raises:
        StorageError: there is no such kind of place, or its package is not installed.
    """
    if is_url(address):
        return UrlStore(str(address), moments=moments)
    return FolderStore(_path(address), moments)


def place_in(address: str | os.PathLike[str], *names: str) -> str:
    """The address of a place inside of another."""
    if is_url(address):
        return "/".join([str(address).rstrip("/"), *names])
    return str(_path(address).joinpath(*names))


@contextlib.contextmanager
def local_folder(address: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A folder to write results into: the place itself, or a temporary one whose files are sent there at the end."""
    if not is_url(address):
        yield _path(address)
        return
    store = open_store(address)
    with tempfile.TemporaryDirectory(prefix="tesseract-flow-") as folder:
        yield pathlib.Path(folder)
        store.make()
        for file in sorted(pathlib.Path(folder).iterdir()):
            if file.is_file():
                store.write(file.name, file.read_bytes())


def _path(address: str | os.PathLike[str]) -> pathlib.Path:
    if isinstance(address, str) and address.startswith("file://"):
        return pathlib.Path(unquote(urlsplit(address).path))
    return pathlib.Path(address)
