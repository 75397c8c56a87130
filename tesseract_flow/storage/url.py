"""Any place that fsspec knows, such as `s3://bucket/folder`. Credentials come from where its library looks for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tesseract_flow.errors import StorageError
from tesseract_flow.storage.base import AbstractPossession, AbstractStore
from tesseract_flow.storage.lease import Lease
from tesseract_flow.storage.secrets import without_secrets


class UrlStore(AbstractStore):
    """A folder at a URL.

    Args:
        url: such as `s3://bucket/runs/beam` or `memory://beam`.
        options: of fsspec's file system.
        lease: takes possession of the store; tests pass one with their own clocks.
    """

    def __init__(
        self,
        url: str,
        options: dict[str, Any] | None = None,
        moments: Callable[[str], None] = lambda moment: None,
        lease: Callable[[UrlStore], AbstractPossession] = Lease,
    ):
        import fsspec

        self.url = url.rstrip("/")
        self.address = without_secrets(self.url)
        self.moments = moments
        self._lease = lease
        with self._translated():
            # Listings that are remembered would hide what another process writes.
            self._files, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **(options or {}))
            self._root = str(path).rstrip("/")

    def __repr__(self) -> str:
        return f"UrlStore({self.address!r})"

    def make(self) -> None:
        with self._translated():
            try:
                self._files.makedirs(self._root, exist_ok=True)
            except PermissionError:
                # Where folders are only prefixes, making one asks for a right that writing into it does not need.
                return

    def possess(self) -> AbstractPossession:
        return self._lease(self)

    def names(self) -> list[str]:
        with self._translated():
            try:
                self._files.invalidate_cache(self._root)
                found = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            return sorted(name for path in found if (name := str(path).rstrip("/").rpartition("/")[2]))

    def read(self, name: str) -> bytes:
        with self._translated():
            return self._files.cat_file(self._path(name))

    def write(self, name: str, data: bytes) -> None:
        self.moments("write")
        with self._translated():
            self._files.pipe_file(self._path(name), data)
        self.moments("written")

    def create(self, name: str, data: bytes) -> None:
        """Write a file that does not exist yet.

        Raises:
            FileExistsError: it does; of several who try at once, one succeeds.
        """
        with self._translated():
            try:
                self._files.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                raise
            except Exception as error:
                if _says_that_it_exists(error):
                    raise FileExistsError(name) from error
                raise

    def remove(self, name: str) -> None:
        with self._translated(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def set_aside(self, name: str, ending: str) -> str:
        new, taken, k = f"{name}.{ending}", set(self.names()), 1
        while new in taken:
            k += 1
            new = f"{name}.{ending}-{k}"
        with self._translated():
            self._files.mv(self._path(name), self._path(new), recursive=False)
        return new

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Each library has its own words for what went wrong, and not all of them are an `OSError`."""
        try:
            yield
        except (OSError, StorageError) as error:
            if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | StorageError):
                raise
            raise StorageError(f"{self.address}: {without_secrets(str(error))}") from error
        except ImportError as error:
            raise StorageError(f"{self.address} needs a package that is not installed: {error}") from error
        except Exception as error:
            raise StorageError(f"{self.address}: {type(error).__name__}: {without_secrets(str(error))}") from error


def _says_that_it_exists(error: Exception) -> bool:
    """S3 says 412 when the condition did not hold, and 409 when two asked at once."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        code = str((response or {}).get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
        if code in ("PreconditionFailed", "ConditionalRequestConflict") or "PreconditionFailed" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
