"""Which call goes down which lane: one lane per worker, pullbacks where their apply was, and nobody is overtaken."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tesseract_core.sdk import local_client

from tesseract_flow.client import HttpTesseract
from tesseract_flow.client.http import lanes as lanes_module
from tesseract_flow.client.http.lane import Lane
from tesseract_flow.client.http.lanes import Lanes
from tests.client.helpers import Asked, Reply, document, wait_until

WORKERS = Path(__file__).parents[1] / "components" / "workers" / "tesseract_api.py"


class Connection:
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Server:
    """Workers as the lanes see them: a new connection is taken in by one that is idle, if there is one."""

    def __init__(self, n_workers: int):
        self.n_workers = n_workers
        self.worker_of: dict[Lane, int] = {}
        self.n_asked = 0
        self.made: list[Connection] = []
        self.lanes: Lanes

    def connect(self) -> Connection:
        self.made.append(Connection())
        return self.made[-1]

    def is_answered(self, lane: Lane, seconds: float | None) -> bool:
        self.n_asked += 1
        busy = {self.worker_of.get(other, 0) for other in self.lanes._open if not other.is_free}
        idle = [worker for worker in range(self.n_workers) if worker not in busy]
        if idle:
            self.worker_of[lane] = idle[0]
        return bool(idle)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture
def lanes_of(pool: ThreadPoolExecutor) -> Iterator[Callable[..., tuple[Server, Lanes]]]:
    made: list[Lanes] = []

    def make(n_workers: int, n_lanes: int = 8, **options: Any) -> tuple[Server, Lanes]:
        server = Server(n_workers)
        server.lanes = Lanes(n_lanes, server.connect, server.is_answered, **options)
        made.append(server.lanes)
        return server, server.lanes

    yield make
    for lanes in made:  # so that a test that fails leaves nobody waiting, and the threads of the pool can end
        wait_until(lambda lanes=lanes: lanes.close() is None and not lanes._queue)


def long(lanes: Lanes) -> None:
    """Let it be known that calls take long."""
    lanes._seconds.update({"apply": 1.0, "pullback": 1.0})


def take(lanes: Lanes, *args: Any, **options: Any) -> Lane:
    lane = lanes.take(*args, **options)
    lanes.sent(lane)
    return lane


def take_all(lanes: Lanes, n: int) -> list[Lane]:
    return [take(lanes, "apply") for _ in range(n)]


def waiting(pool: ThreadPoolExecutor, lanes: Lanes, *args: Any, **options: Any) -> Future[Lane]:
    """A call that waits for a lane, and is in the queue already."""
    n_before = len(lanes._queue)
    future = pool.submit(take, lanes, *args, **options)
    wait_until(lambda: len(lanes._queue) > n_before or future.done())
    return future


def n_open(lanes: Lanes) -> int:
    return len(lanes._open)


# One lane per worker.


def test_one_caller_keeps_one_lane(lanes_of):
    server, lanes = lanes_of(4)
    for _ in range(10):
        lanes.give_back(take(lanes, "apply", "x"), has_seen=True)
    assert len(server.made) == 1 and server.n_asked == 0


def test_calls_at_once_reach_one_worker_each(lanes_of):
    server, lanes = lanes_of(4)
    held = take_all(lanes, 4)
    assert {server.worker_of.get(lane, 0) for lane in held} == {0, 1, 2, 3}
    for lane in held:
        lanes.give_back(lane)
    # Without another question, and in the same order.
    long(lanes)
    assert take_all(lanes, 4) == held
    assert server.n_asked == 3


def test_no_more_lanes_than_workers(lanes_of, pool):
    server, lanes = lanes_of(2)
    held = take_all(lanes, 2)
    third = waiting(pool, lanes, "apply")
    wait_until(lambda: server.n_asked > 2)  # it has asked, more than once, and nobody was there
    assert not third.done() and n_open(lanes) == 2
    long(lanes)
    lanes.give_back(held[1])
    assert third.result(5) is held[1]  # the first that is free
    wait_until(lambda: all(connection.is_closed for connection in server.made[2:]))


def test_no_more_lanes_than_allowed(lanes_of, pool):
    server, lanes = lanes_of(8, n_lanes=2)
    held = take_all(lanes, 2)
    third = waiting(pool, lanes, "apply")
    lanes.give_back(held[0])
    assert third.result(5) is held[0]
    assert server.n_asked == 1


def test_a_worker_that_becomes_idle_meanwhile_is_no_new_one(lanes_of, pool):
    server, lanes = lanes_of(1)
    held = take(lanes, "apply")

    def answered_by_the_first_worker(lane: Lane, seconds: float | None) -> bool:
        lanes._seconds["apply"] = 1.0
        lanes.give_back(held)
        return True

    lanes._is_answered = answered_by_the_first_worker
    assert waiting(pool, lanes, "apply").result(5) is held
    wait_until(lambda: len(server.made) == 2 and server.made[1].is_closed)
    assert n_open(lanes) == 1


def test_no_more_lanes_than_allowed_though_others_are_added_meanwhile(lanes_of, pool):
    _, lanes = lanes_of(4, n_lanes=2)
    held = take(lanes, "apply")
    others: list[Lane] = []

    def answered(lane: Lane, seconds: float | None) -> bool:
        lanes._seconds["abstract_eval"] = 0.0
        others.append(take(lanes, "abstract_eval"))
        return True

    lanes._is_answered = answered
    second = waiting(pool, lanes, "apply")
    wait_until(lambda: len(others) == 1 and not lanes._is_adding)
    assert n_open(lanes) == 2 and not second.done()
    lanes.give_back(held)
    assert second.result(5) is held


def test_a_lane_is_added_only_when_all_others_are_at_work(lanes_of, pool):
    server, lanes = lanes_of(2)
    held = lanes.take("apply")
    second = waiting(pool, lanes, "apply")
    assert server.n_asked == 0 and not second.done()  # the worker of the first may still take new connections
    lanes.sent(held)
    assert second.result(5) is not held


def test_lanes_with_residuals_are_not_replaced_when_calls_become_long(lanes_of):
    """Short calls opened them without proof. Whoever asks for their residuals has to find them."""
    server, lanes = lanes_of(4, n_lanes=3)
    lanes.give_back(take(lanes, "apply"))
    lanes._seconds["apply"] = lanes_module._SHORT / 2
    held = [take(lanes, "apply", key) for key in "abc"]
    for lane in held:
        lanes.give_back(lane, has_seen=True)
    long(lanes)
    busy = [take(lanes, "apply", key) for key in "xyz"]  # one each, and none is taken out for another
    assert set(busy) == set(held)
    for lane in busy:
        lanes.give_back(lane, has_seen=True)
    for key, lane in zip("abc", held, strict=True):
        assert take(lanes, "pullback", key, is_patient=True) is lane
    assert server.n_asked == 0
    assert not any(connection.is_closed for connection in server.made)


def test_short_calls_do_not_wait_for_proof(lanes_of, pool):
    server, lanes = lanes_of(1)
    lanes.give_back(take(lanes, "apply"))
    lanes._seconds["apply"] = lanes_module._SHORT / 2
    held = take_all(lanes, 3)
    assert len(set(held)) == 3 and server.n_asked == 0
    for lane in held:
        lanes.give_back(lane)
    # Long ones leave the lanes alone that may share a worker.
    long(lanes)
    first = take(lanes, "apply")
    assert first is held[0]
    second = waiting(pool, lanes, "apply")
    wait_until(lambda: server.n_asked > 1)
    assert not second.done()
    lanes.give_back(first)
    assert second.result(5) is first


def test_lanes_that_were_added_unasked_make_room(lanes_of):
    server, lanes = lanes_of(2, n_lanes=2)
    lanes._seconds["apply"] = lanes_module._SHORT / 2
    for lane in take_all(lanes, 2):
        lanes.give_back(lane)
    long(lanes)
    _, second = take_all(lanes, 2)
    assert second.is_proven and server.worker_of[second] == 1
    assert [connection.is_closed for connection in server.made] == [False, True, False] and n_open(lanes) == 2


def test_where_there_is_nobody_to_ask(pool):
    lanes = Lanes(2, Connection)
    held = [lanes.take(), lanes.take()]
    third = waiting(pool, lanes)
    lanes.give_back(held[1])
    assert third.result(5) is held[1]


# Nobody is overtaken.


def test_first_come_first_served(lanes_of, pool):
    _, lanes = lanes_of(1, n_lanes=1)
    lane = take(lanes, "apply")
    waiters = [waiting(pool, lanes, "apply") for _ in range(5)]
    for waiter in waiters:
        assert not waiter.done()
        lanes.give_back(lane)
        assert waiter.result(5) is lane


def test_a_caller_who_gives_up_leaves_no_trace(lanes_of, pool):
    _, lanes = lanes_of(1)
    lane = take(lanes, "apply")

    def interrupt(lane: Lane, seconds: float | None) -> bool:
        raise KeyboardInterrupt

    lanes._is_answered = interrupt
    with pytest.raises(KeyboardInterrupt):
        lanes.take("apply")
    assert not lanes._queue and n_open(lanes) == 1
    lanes._is_answered = lambda lane, seconds: False
    second = waiting(pool, lanes, "apply")
    lanes.give_back(lane)
    assert second.result(5) is lane


# Pullbacks where their apply was.


def test_a_pullback_finds_its_lane(lanes_of):
    _, lanes = lanes_of(3)
    held = {key: take(lanes, "apply", key) for key in "abc"}
    for lane in held.values():
        lanes.give_back(lane, has_seen=True)
    for key in "cab":
        lane = take(lanes, "pullback", key, is_patient=True)
        assert lane is held[key]
        lanes.give_back(lane)


def test_a_pullback_waits_for_its_lane(lanes_of, pool):
    _, lanes = lanes_of(2)
    first, second = take(lanes, "apply", "a"), take(lanes, "apply", "b")
    lanes.give_back(first, has_seen=True)
    lanes.give_back(second, has_seen=True)
    long(lanes)
    assert take(lanes, "apply", "c") is first
    pullback = waiting(pool, lanes, "pullback", "a", is_patient=True)
    assert not pullback.done()  # though the second lane is free
    again = take(lanes, "apply", "a")
    assert again is second  # an apply gains nothing by waiting
    lanes.give_back(second)
    assert not pullback.done()
    lanes.give_back(first)
    assert pullback.result(5) is first


def test_an_apply_that_failed_has_left_nothing(lanes_of):
    _, lanes = lanes_of(2)
    lanes.give_back(take(lanes, "apply", "a"))
    assert not lanes.has_seen("a")


def test_a_lane_that_is_lost_keeps_nobody_waiting(lanes_of, pool):
    server, lanes = lanes_of(2)
    first, second = take(lanes, "apply", "a"), take(lanes, "apply", "b")
    lanes.give_back(first, has_seen=True)
    long(lanes)
    assert take(lanes, "apply", "a") is first
    pullback = waiting(pool, lanes, "pullback", "a", is_patient=True)
    first.is_lost = True
    lanes.give_back(first)
    assert pullback.result(5) not in (first, second)
    assert server.made[0].is_closed and not lanes.has_seen("a")


def test_many_pullbacks_at_one_point_spread(lanes_of, pool):
    _, lanes = lanes_of(2)
    first, second = take(lanes, "apply", "a"), take(lanes, "apply", "b")
    lanes.give_back(first, has_seen=True)
    lanes.give_back(second, has_seen=True)
    long(lanes)
    rows = [waiting(pool, lanes, "pullback", "a", is_patient=True) for _ in range(3)]
    assert rows[0].result(5) is first and not rows[1].done()  # the second row waits,
    assert rows[2].result(5) is second  # the third is solved elsewhere,
    lanes.give_back(second, has_seen=True)
    assert rows[1].result(5) is second  # where further ones find their residuals from now on
    assert waiting(pool, lanes, "pullback", "b", is_patient=True).done() is False
    lanes.close()


def test_what_is_remembered_is_bounded(lanes_of, monkeypatch):
    monkeypatch.setattr(lanes_module, "_REMEMBERED", 3)
    _, lanes = lanes_of(1)
    for key in "abcad":
        lanes.give_back(take(lanes, "apply", key), has_seen=True)
    assert [lanes.has_seen(key) for key in "abcd"] == [True, False, True, True]


# Connections that end.


def test_idle_lanes_expire(lanes_of):
    now = [0.0]
    server, lanes = lanes_of(2, expiry=55.0, clock=lambda: now[0])
    lanes.give_back(take(lanes, "apply", "a"), has_seen=True)
    now[0] = 50.0
    lanes.give_back(take(lanes, "apply", "a"), has_seen=True)
    now[0] = 100.0
    lanes.give_back(take(lanes, "apply"))
    assert len(server.made) == 1 and lanes.has_seen("a")
    now[0] = 156.0
    lanes.give_back(take(lanes, "apply"))
    assert [connection.is_closed for connection in server.made] == [True, False]
    assert not lanes.has_seen("a")


def test_what_is_idle_for_too_long_is_closed_without_a_further_call(lanes_of):
    now = [0.0]
    server, lanes = lanes_of(2, expiry=55.0, clock=lambda: now[0])
    lanes.give_back(take(lanes, "apply"))
    now[0] = 54.0
    lanes_module.close_surplus([lanes])
    assert [connection.is_closed for connection in server.made] == [False]
    now[0] = 56.0
    lanes_module.close_surplus([lanes])
    assert [connection.is_closed for connection in server.made] == [True]


def test_of_too_many_the_longest_unused_are_closed(lanes_of):
    now = [0.0]
    several = [lanes_of(1, clock=lambda: now[0]) for _ in range(5)]
    for _, lanes in several:
        lanes.give_back(take(lanes, "apply"))
        now[0] += 1.0
    busy = several[0][1].take("apply")  # what is in use stays, however old
    lanes_module.close_surplus([lanes for _, lanes in several], most=2)
    assert [server.made[0].is_closed for server, _ in several] == [False, True, True, False, False]
    several[0][1].give_back(busy)


def test_a_connection_that_was_renewed_casts_doubt_on_the_idle_ones(lanes_of):
    server, lanes = lanes_of(3)
    held = take_all(lanes, 3)
    for lane in held:
        lane.arrived_by(object())
    lanes.give_back(held[1])
    held[0].arrived_by(object())
    lanes.give_back(held[0])
    assert [connection.is_closed for connection in server.made] == [False, True, False]
    lanes.give_back(held[2])
    assert n_open(lanes) == 2


def test_a_connection_that_was_renewed_has_seen_nothing(lanes_of):
    _, lanes = lanes_of(2)
    lane = take(lanes, "apply", "a")
    lane.arrived_by(object())
    lanes.give_back(lane, has_seen=True)
    lane = take(lanes, "apply", "b")
    lane.arrived_by(object())
    lanes.give_back(lane, has_seen=True)
    assert not lanes.has_seen("a") and lanes.has_seen("b")
    assert n_open(lanes) == 1


def test_lanes_with_residuals_are_kept_in_use(lanes_of):
    now, greeted = [0.0], []
    server, lanes = lanes_of(2, expiry=55.0, clock=lambda: now[0])
    held = {"a": take(lanes, "apply", "a"), "b": lanes._add()}
    lanes.give_back(held["a"], has_seen=True)
    lanes.give_back(held["b"])
    lanes._is_answered = lambda lane, seconds: greeted.append((lane, seconds)) or True
    for second in range(10, 1000, 10):
        now[0] = float(second)
        for thread in lanes.greet():
            thread.join(5)
    # For as long as it takes, though not the lane that has seen nothing.
    assert greeted[0] == (held["a"], None) and {lane for lane, _ in greeted} == {held["a"]}
    assert take(lanes, "pullback", "a", is_patient=True) is held["a"]
    assert [connection.is_closed for connection in server.made] == [False, True]


def test_nobody_is_greeted_for_ever(lanes_of):
    now = [0.0]
    _, lanes = lanes_of(1, clock=lambda: now[0])
    lanes.give_back(take(lanes, "apply", "a"), has_seen=True)
    now[0] = lanes_module._KEPT_FOR + 1.0
    assert lanes.greet() == []


def test_a_greeting_that_fails_ends_the_lane(lanes_of):
    now = [0.0]
    server, lanes = lanes_of(1, clock=lambda: now[0])
    lanes.give_back(take(lanes, "apply", "a"), has_seen=True)
    now[0] = 50.0
    lanes._is_answered = lambda lane, seconds: False
    for thread in lanes.greet():
        thread.join(5)
    assert server.made[0].is_closed and n_open(lanes) == 0


def test_close():
    made: list[Connection] = []

    def connect() -> Connection:
        made.append(Connection())
        return made[-1]

    lanes = Lanes(3, connect)
    lanes.give_back(lanes.take())
    held = lanes.take()
    lanes.close()
    assert [connection.is_closed for connection in made] == [True]
    lanes.give_back(held)
    lanes.give_back(lanes.take())  # a new one
    assert len(made) == 2
    lanes.close()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_nobody_shares_a_lane_and_nobody_is_forgotten(seed):
    n_lanes, in_use, most = (1, 2, 4, 8)[seed], set(), 0
    lock, pause = threading.Lock(), threading.Event()
    answers = random.Random(seed)
    lanes = Lanes(n_lanes, Connection, lambda lane, seconds: answers.random() < 0.5, expiry=0.01)

    def work(k: int) -> None:
        nonlocal most
        rng = random.Random(100 * seed + k)
        for _ in range(12):
            lane = lanes.take(
                endpoint := rng.choice(["apply", "pullback"]), rng.randrange(8), is_patient=endpoint[0] == "p"
            )
            with lock:
                assert lane not in in_use
                in_use.add(lane)
                most = max(most, len(in_use))
            if rng.random() < 0.8:
                lanes.sent(lane)
            pause.wait(rng.choice([0.0, 0.001, 0.01]))
            lane.is_lost = rng.random() < 0.1
            if rng.random() < 0.1:
                lane.arrived_by(object())
            with lock:
                in_use.discard(lane)
            lanes.give_back(lane, has_seen=not lane.is_lost)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12), timeout=30))
    assert most <= n_lanes and not lanes._queue
    assert all(lane.is_free for lane in lanes._open)


# Servers.


def test_new_lanes_are_asked_for_before_they_are_used(local_server, pool):
    n_lanes = 3
    together = threading.Barrier(n_lanes)

    def answer(asked: Asked) -> Reply:
        if asked.method == "POST":
            together.wait(5)
        return Reply(200, document() if asked.path.startswith("/openapi") else b"{}")

    local_server.answer = answer
    handle = HttpTesseract(local_server.url, n_lanes=n_lanes)
    list(pool.map(lambda k: handle.request("apply", {"inputs": {"x": k}}), range(n_lanes)))
    assert [asked.path for asked in local_server.asked if asked.method == "GET"] == ["/health"] * (n_lanes - 1)
    assert local_server.n_connections == n_lanes


@pytest.fixture(scope="module")
def four_workers(tmp_path_factory) -> Iterator[local_client.TesseractProcess]:
    """Somebody else's server: one address, and uvicorn's workers behind it. (We serve each on its own.)"""
    folder = tmp_path_factory.mktemp("outputs")
    server = local_client.serve(WORKERS, num_workers=4, python_executable=sys.executable, output_path=folder)
    yield server
    server.remove(force=True)


def pull(handle: Any, inputs: dict[str, Any]) -> Any:
    return handle.vector_jacobian_product(inputs, ["x"], ["y"], {"y": np.ones(2)})


@pytest.mark.slow
@pytest.mark.server
def test_four_calls_meet_at_four_workers(four_workers, pool, tmp_path):
    handle = HttpTesseract(four_workers.url)
    for attempt in range(3):  # the first has no connection yet, the others have those of the first
        folder = tmp_path / str(attempt)
        folder.mkdir()
        inputs = [{"x": np.array([attempt, k]), "meet": str(folder), "n_expected": 4} for k in range(4)]
        outputs = list(pool.map(handle.apply, inputs))
        assert len({output["pid"] for output in outputs}) == 4
        # And each pullback at the worker of its own apply.
        list(pool.map(lambda at: pull(handle, {**at, "record": str(tmp_path / "found")}), inputs))
    assert handle._session.lanes._open[3].is_proven


@pytest.mark.server
@pytest.mark.parametrize("order", ["pairs", "all applies first"])
def test_every_pullback_finds_its_residuals(four_workers, tmp_path, order):
    handle, record = HttpTesseract(four_workers.url, label=order), tmp_path / "found"
    inputs = [{"x": np.array([k, 0.5]), "record": str(record)} for k in range(40)]

    def pair(at: dict[str, Any]) -> None:
        handle.apply(at)
        pull(handle, at)

    with ThreadPoolExecutor(8) as pool:
        if order == "pairs":
            list(pool.map(pair, inputs))
        else:
            list(pool.map(handle.apply, inputs))
            list(pool.map(lambda at: pull(handle, at), inputs))
    assert record.read_text().split() == ["hit"] * 40


@pytest.mark.server
def test_short_answers_of_several_workers_are_not_held_back(four_workers):
    """Nagle's algorithm on their side and delayed acknowledgements on ours made each take 44 ms."""
    handle = HttpTesseract(four_workers.url, label="quick")
    for _ in range(20):
        handle.apply({"x": np.ones(2)})
    lane = handle._session.lanes
    seconds = []
    for _ in range(10):
        handle.apply({"x": np.ones(2)})
        seconds.append(lane._open[0].used_at - lane._open[0].taken_at)
    assert min(seconds) < 0.03
