"""Probes overlap, answer in order, hold back when nobody takes their answers, and stop at the first failure."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tesseract_flow.client.at_once import AtOnce

SECONDS = 60.0  # how long a test waits for what is bound to happen


@pytest.mark.parametrize("n_in_flight", [1, 3, 100])
def test_answers_come_in_the_order_of_the_probes(n_in_flight: int) -> None:
    second = threading.Event()

    def ask(probe: int) -> int:
        if n_in_flight > 1 and probe == 0:
            assert second.wait(SECONDS)
        if probe == 1:
            second.set()
        return probe**2

    with AtOnce(n_in_flight) as flight:
        assert list(flight.map(ask, range(20))) == [probe**2 for probe in range(20)]
        assert list(flight.map(ask, [])) == []
        assert flight.n_made == 20


def test_a_slow_reader_holds_up_the_probes() -> None:
    """A Jacobian of thousands of columns must not wait in memory."""
    lock, started = threading.Lock(), []

    def ask(probe: int) -> int:
        with lock:
            started.append(probe)
        return probe

    with AtOnce(3) as flight:
        answers = flight.map(ask, range(1000))
        for k in range(10):
            assert next(answers) == k
            assert len(started) <= k + 6


def test_failure_is_raised_while_an_earlier_probe_runs() -> None:
    release, started = threading.Event(), []

    def ask(probe: int) -> int:
        started.append(probe)
        if probe == 0:
            assert release.wait(SECONDS)
        if probe == 1:
            raise KeyError("gone")
        return probe

    with AtOnce(2) as flight:
        with pytest.raises(KeyError, match="gone") as caught:
            next(flight.map(ask, range(100)))
        assert not release.is_set()
        release.set()
    assert caught.value.__notes__ == ["This was probe 2 of 100 (1)."]
    assert len(started) <= 4


def test_run_ids_count_on_from_one_map_to_the_next() -> None:
    def ask(probe: Any) -> str | None:
        return flight.run_id

    for n_in_flight in (1, 4):
        with AtOnce(n_in_flight, "run") as flight:
            assert flight.run_id == "run"
            assert list(flight.map(ask, "ab")) == ["run-0001", "run-0002"]
            assert list(flight.map(ask, "c")) == ["run-0003"]
            assert flight.run_id == "run"
    with AtOnce(2) as flight:
        assert list(flight.map(ask, "ab")) == [None, None]
