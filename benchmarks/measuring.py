"""What all measurements share: a row of the table, medians of functions timed in turn, and the servers to ask."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tesseract_core.sdk import local_client

from tesseract_flow.client import ServedTesseract

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: names the note about it, for when the goal is not met.
        ours, peer: in `unit`.
        goal: the largest ratio that we accept.
    """

    key: str
    work: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    goal: float

    @property
    def ratio(self) -> float:
        if self.peer == 0.0:
            return 1.0 if self.ours == 0.0 else math.inf
        return self.ours / self.peer

    @property
    def is_met(self) -> bool:
        return self.ours <= self.goal * self.peer  # nothing of nothing is no ratio

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "ratio": self.ratio, "is_met": self.is_met}


@dataclasses.dataclass(frozen=True)
class Bench:
    """How to measure, and with what.

    Attributes:
        folder: for what a run leaves behind besides its results.
        peer_python: interpreter of the environment with the peers; None leaves out what needs it.
        is_quick: everything once, small and short: shows that it works, and no figure to rely on.
    """

    folder: Path
    peer_python: Path | None = None
    is_quick: bool = False

    @property
    def delay(self) -> float:
        """Seconds per call, for what is about overlap."""
        return 0.05 if self.is_quick else 0.2

    def repeat(self, n: int) -> int:
        return 2 if self.is_quick else n

    @functools.cached_property
    def urls(self) -> list[str]:
        """Four servers of the doubling component, one worker each."""
        return serve([ServedTesseract(component("doubler"), label=f"doubler-{k}") for k in range(4)])

    def peer(self, *arguments: object) -> dict[str, float]:
        """What the peer's side of a measurement has found, in its own environment."""
        script = str(HERE / "peer_tesseract_jax.py")
        done = subprocess.run(
            [str(self.peer_python), script, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
        )
        return json.loads(done.stdout)


def component(name: str) -> Path:
    return HERE / name / "tesseract_api.py"


def serve(tesseracts: Sequence[ServedTesseract]) -> list[str]:
    """Their addresses. Each takes seconds to start, so all start together."""
    with ThreadPoolExecutor(len(tesseracts)) as pool:
        return list(pool.map(lambda tesseract: tesseract.url, tesseracts))


@contextlib.contextmanager
def one_server(name: str, n_workers: int) -> Iterator[str]:
    """The address of a server with several workers behind it, as somebody else would start it: we serve each on its
    own."""
    with tempfile.TemporaryDirectory(prefix="tesseract-flow-bench-") as folder:
        process = local_client.serve(
            component(name), num_workers=n_workers, python_executable=sys.executable, output_path=folder
        )
        try:
            yield process.url
        finally:
            process.remove(force=True)


def median_seconds(fns: Sequence[Callable[[], Any]], repeat: int, *, n_warm_up: int = 1) -> list[float]:
    """Median wall time of each function, measured in turn so that a slow moment hits them all alike."""
    return [statistics.median(own) for own in _seconds(fns, repeat, n_warm_up)]


def median_difference(whole: Callable[[], Any], part: Callable[[], Any], repeat: int) -> float:
    """By how many seconds one takes longer than the other: the median over pairs, each measured in one moment."""
    return statistics.median(a - b for a, b in zip(*_seconds([whole, part], repeat, 1), strict=True))


def _seconds(fns: Sequence[Callable[[], Any]], repeat: int, n_warm_up: int) -> list[list[float]]:
    for _ in range(n_warm_up):
        for fn in fns:
            fn()
    times: list[list[float]] = [[] for _ in fns]
    for _ in range(repeat):
        for fn, own in zip(fns, times, strict=True):
            start = time.perf_counter()
            fn()
            own.append(time.perf_counter() - start)
    return times


def run_python(*arguments: str, **options: Any) -> None:
    """A fresh interpreter of this environment, at the root of the checkout. What it says is shown if it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed with {done.returncode}:\n{done.stderr}")
