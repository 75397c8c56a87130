"""What a place for files can do, and what it means to possess one."""

from __future__ import annotations

import abc
from collections.abc import Callable


class AbstractPossession(abc.ABC):
    """One process's hold on a store.

    Attributes:
        generation: which possession of this store it is, counted by the store; 0 where the store needs no such number,
            because a holder cannot lose it and go on.
    """

    generation: int = 0

    @abc.abstractmethod
    def check(self) -> None:
        """Raise `StorageError` if it was lost: nothing may be written any more."""

    @abc.abstractmethod
    def release(self) -> None:
        """Give it up. Harmless when it is gone."""


class AbstractStore(abc.ABC):
    """A place for small files by name, without folders in it.

    Everything here raises `OSError`: `FileNotFoundError` where there is no such file, `StorageError` (which is one as
    well) for what the place itself says.

    Attributes:
        address: where it is, without credentials, for messages.
        can_append: whether `append` is there.
        moments: told each moment of a write just before it happens; tests pull the plug there.
    """

    address: str
    can_append: bool = False
    moments: Callable[[str], None]

    @abc.abstractmethod
    def make(self) -> None:
        """Make the place, if it has to be made."""

    @abc.abstractmethod
    def possess(self) -> AbstractPossession:
        """Take possession.

        Raises:
            StorageError: somebody else has it; the message says who, as far as that is known.
        """

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Names of all that is there, in order; empty if the place does not exist."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """A file's content. Never waits for a writer, as reading a pipe would: what is no file is an `OSError`."""

    @abc.abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Put a file in place, whole, and durable on return; over an older one of that name."""

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file."""
        raise NotImplementedError

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file. Harmless if there is none."""

    @abc.abstractmethod
    def set_aside(self, name: str, ending: str) -> str:
        """Move what is called `name`, whatever it is, out of the way, and return its new name."""
