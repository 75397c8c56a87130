"""Serves components for the processes that this one starts, once for all of them.

Here: what is served, and that it stays fit to be had. Not here: how the others come by it (`offers`). The one idea: a
component that somebody has is left alone; one that nobody has is looked at, and served afresh if it has died, was not
given back in good order, or has been changed since.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tesseract_flow.client.handles.offers import VARIABLE, Offer, offer_here
from tesseract_flow.client.handles.private_folder import PrivateFolder
from tesseract_flow.client.handles.process import ServedProcess, served_here
from tesseract_flow.client.handles.source import code_of
from tesseract_flow.errors import TesseractFlowError
from tesseract_flow.wire import CAN_LOCK, locked

_PACE = 1.0  # seconds between two looks at what nobody has
_log = logging.getLogger("tesseract_flow")


class Lender:
    """Offers components to the processes that are started while it is open. Open it before the components are.

    On a system without locks nothing is offered.
    """

    def __init__(self, pace: float = _PACE):
        self._pace = pace
        self._served: dict[Path, ServedProcess] = {}
        self._failed: dict[Path, str] = {}  # code that could not be served
        self._is_over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True, name="tesseract-lender")

    def __enter__(self) -> Self:
        self._folder = PrivateFolder(Path(tempfile.gettempdir()))
        self._before = dict(_counted(served_here()))  # somebody else's
        if CAN_LOCK:
            offer_here(str(self._folder.path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.environ.pop(VARIABLE, None)
        self._is_over.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for process in [*self._served.values()]:
            process.stop()
        self._folder.remove()

    def offer(self, n_each: int = 1) -> dict[str, list[str]]:
        """Offer all that processes of this one serve since it is open, so often that as many can have it at once.

        Returns:
            the addresses of each component, by its name.
        """
        if not CAN_LOCK:
            return {}
        served = [(one, n - self._before.get(one, 0)) for one, n in _counted(served_here())]
        wanted = [dataclasses.replace(one, number=k) for one, n in served for k in range(n * n_each)]
        with ThreadPoolExecutor(max(len(wanted), 1)) as pool:  # starting one takes seconds, so together
            urls = list(pool.map(lambda one: one.http.url, wanted))
        found: dict[str, list[str]] = {}
        for k, (process, url) in enumerate(zip(wanted, urls, strict=True)):
            file = self._folder.path / f"{k}.json"
            file.touch()
            self._served[file] = process
            process.offered().write(file)
            found.setdefault(process.name, []).append(url)
        self._keeper.start()
        return found

    def _keep(self) -> None:
        while not self._is_over.wait(self._pace):
            for file in self._served:
                if self._is_over.is_set() or (descriptor := locked(file)) is None:
                    continue  # somebody has it
                try:
                    self._look_after(file)
                finally:
                    os.close(descriptor)

    def _look_after(self, file: Path) -> None:
        process, offer = self._served[file], Offer.read(file)
        if offer is not None and offer.state == "free" and process.is_alive:
            return
        code = code_of(process.path)
        if self._failed.get(file) == code:
            return
        process.stop()
        self._served[file] = process = dataclasses.replace(process, code=code)
        try:
            process.offered().write(file)
            _log.warning("The component %s is served afresh, for the runs to come.", process.path.parent.name)
        except TesseractFlowError as error:
            self._failed[file] = code
            _log.warning("%s\nThe runs to come serve it by themselves, until it is mended.", error)


def _counted(processes: Sequence[ServedProcess]) -> list[tuple[ServedProcess, int]]:
    """Equal processes, and how many there are of each."""
    counts: dict[ServedProcess, int] = {}
    for process in processes:
        one = dataclasses.replace(process, number=0)
        counts[one] = counts.get(one, 0) + 1
    return [*counts.items()]
