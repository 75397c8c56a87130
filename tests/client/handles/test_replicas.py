"""Several servers as one: the least busy first, pullbacks where their apply was, failures left out and tried again."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tesseract_flow.client import HttpTesseract, ReplicatedTesseract, RetryPolicy, count_requests, open_tesseract
from tesseract_flow.client.handles import replicas as replicas_module
from tesseract_flow.errors import (
    CallTimeout,
    ComponentFailed,
    ConnectionLost,
    OptionError,
    Overloaded,
    SchemaError,
    TransientError,
    Unreachable,
)
from tesseract_flow.testing import FunctionTesseract
from tests.client.helpers import document, wait_until

REFUSED = httpx.ConnectError("refused")


class Solver:
    """One server: tells who it is, fails when told, keeps calls waiting when told."""

    def __init__(self, host: str, schema: bytes | None = None):
        self.host = host
        self.schema = document("fem") if schema is None else schema
        self.error: Exception | None = None
        self.status = 200
        self.is_open = threading.Event()
        self.is_open.set()
        self.asked: list[str] = []
        self.n_now = 0
        self.sleeps: list[float] = []
        self.lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.strip("/")
        with self.lock:
            self.asked.append(path)
            self.n_now += 1
        try:
            if self.error is not None:
                raise self.error
            if path == "openapi.json":
                return httpx.Response(200, content=self.schema)
            assert self.is_open.wait(10)
            if self.error is not None:
                raise self.error
            is_pullback = path == "vector_jacobian_product"
            return httpx.Response(self.status, json={"x": ord(self.host)} if is_pullback else {"host": self.host})
        finally:
            with self.lock:
                self.n_now -= 1

    def handle(self, **options: Any) -> HttpTesseract:
        transport = httpx.MockTransport(self)
        return HttpTesseract(f"http://{self.host}", transport=transport, sleep=self.sleeps.append, **options)

    @property
    def calls(self) -> list[str]:
        return [path for path in self.asked if path != "openapi.json"]


class Farm:
    """Solvers a, b, c, ... and one handle to them, with a clock that stands still."""

    def __init__(self, n: int, n_retries: int = 0, **options: Any):
        self.solvers = [Solver("abcdefgh"[k]) for k in range(n)]
        self.now = 0.0
        self.handles = [solver.handle(**options) for solver in self.solvers]
        self.sleeps: list[float] = []
        self.handle = ReplicatedTesseract(
            tuple(self.handles), clock=self.clock, sleep=self.sleeps.append, retry=RetryPolicy(n_retries=n_retries)
        )

    def clock(self) -> float:
        return self.now

    def host(self, x: float = 0.0) -> str:
        return self.handle.apply({"x": x})["host"]

    def pull(self, x: float) -> str:
        request = {"inputs": {"x": x}, "vjp_inputs": ["x"], "vjp_outputs": ["y"], "cotangent_vector": {"y": 1.0}}
        return chr(self.handle.request("vector_jacobian_product", request)["x"])


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


# Who gets a call.


def test_idle_replicas_take_turns():
    farm = Farm(3)
    assert [farm.host(k) for k in range(6)] == list("abcabc")


def test_the_least_busy_first(pool):
    farm = Farm(3)
    a, b, c = farm.solvers
    _ = farm.handle.schema
    a.is_open.clear()
    b.is_open.clear()
    held = [pool.submit(farm.host, 1.0), pool.submit(farm.host, 2.0)]
    wait_until(lambda: a.n_now + b.n_now + len(c.calls) == 2)
    assert [farm.host(k) for k in range(10, 15)] == ["c"] * 5
    a.is_open.set()
    b.is_open.set()
    assert {call.result(5) for call in held} <= {"a", "b", "c"}


def test_pullbacks_go_where_their_apply_was():
    farm = Farm(3)
    hosts = {x: farm.host(x) for x in np.arange(9.0)}
    assert set(hosts.values()) == {"a", "b", "c"}
    assert {x: farm.pull(x) for x in reversed(hosts)} == hosts
    assert {x: farm.host(x) for x in reversed(hosts)} == hosts  # the same apply again, too


def test_a_pullback_waits_for_its_replica(pool):
    farm = Farm(2)
    assert farm.host(1.0) == "a"
    a, _ = farm.solvers
    a.is_open.clear()
    pullback = pool.submit(farm.pull, 1.0)
    wait_until(lambda: a.n_now == 1)
    assert farm.host(2.0) == "b"
    a.is_open.set()
    assert pullback.result(5) == "a"


def test_many_pullbacks_at_one_point_spread(pool):
    farm = Farm(2)
    assert farm.host(1.0) == "a"
    for solver in farm.solvers:
        solver.is_open.clear()
    rows = [pool.submit(farm.pull, 1.0) for _ in range(3)]
    # The second waits at the first replica, the third is solved at the other.
    wait_until(lambda: [solver.n_now for solver in farm.solvers] == [1, 1])
    for solver in farm.solvers:
        solver.is_open.set()
    assert sorted(row.result(5) for row in rows) == ["a", "a", "b"]


def test_lanes_of_all(pool):
    assert Farm(3, n_lanes=4).handle.n_lanes == 12


def test_other_handles_as_replicas():
    one, other = (FunctionTesseract(lambda inputs: {"y": inputs["x"] * 2.0}, {"x": np.ones(2)}) for _ in range(2))
    assert one != other
    handle = ReplicatedTesseract((one, other))
    for _ in range(4):
        np.testing.assert_array_equal(handle.apply({"x": np.ones(2)})["y"], 2.0)
    assert handle.schema == one.schema


# Failures.


def test_a_call_that_cannot_have_started_goes_on_at_once():
    farm = Farm(3)
    _ = farm.handle.schema
    a, b, _ = farm.solvers
    a.error = b.error = REFUSED
    with count_requests() as counts:
        assert farm.host() == "c"
    assert counts == {"fem.apply": 3}
    assert a.sleeps == b.sleeps == []  # no second attempt at the same server
    assert [farm.host() for _ in range(3)] == ["c"] * 3
    assert len(a.calls) == len(b.calls) == 1


def test_a_replica_is_tried_again_later_and_ever_more_rarely():
    farm = Farm(2)
    _ = farm.handle.schema
    a, _ = farm.solvers
    a.error = REFUSED
    tried = []
    for second in range(300):
        farm.now = float(second)
        n_before = len(a.calls)
        assert farm.host(second) == "b"
        tried += [second] * (len(a.calls) - n_before)
    assert tried == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    a.error, farm.now = None, 303.0
    assert {farm.host(1000 + k) for k in range(4)} == {"a", "b"}
    a.error = REFUSED
    assert {farm.host(2000 + k) for k in range(4)} == {"b"}
    farm.now = 304.5  # from the beginning
    n_before = len(a.calls)
    assert farm.host(3000) == "b" and len(a.calls) == n_before + 1


def test_one_call_finds_out_whether_a_replica_is_back(pool):
    farm = Farm(2)
    _ = farm.handle.schema
    a, b = farm.solvers
    a.error = REFUSED
    b.is_open.clear()
    held = [pool.submit(farm.host, k) for k in range(2)]
    wait_until(lambda: b.n_now == 2)
    a.error, farm.now = None, 2.0
    a.is_open.clear()
    first = pool.submit(farm.host, 2)
    wait_until(lambda: a.n_now == 1)
    second = pool.submit(farm.host, 3)
    wait_until(lambda: b.n_now == 3)  # though b is the busier one
    a.is_open.set()
    assert first.result(5) == "a"
    assert farm.host(4) == "a"  # now that it is known to be back
    b.is_open.set()
    assert {call.result(5) for call in (*held, second)} == {"b"}


def test_a_lost_connection_is_told_and_the_next_attempt_goes_elsewhere():
    farm = Farm(2)
    _ = farm.handle.schema
    a, b = farm.solvers
    a.error = httpx.ReadError("reset")
    with pytest.raises(ConnectionLost, match=r"http://a: .*may still be running"):
        farm.host(1.0)
    assert (a.calls, b.calls) == (["apply"], [])
    assert farm.host(1.0) == "b"
    farm.now = 2.0
    policy = RetryPolicy(first_delay=0.0)
    assert policy.run(lambda: farm.host(2.0), sleep=lambda seconds: None) == "b"
    assert len(a.calls) == 2


def test_the_next_attempt_of_its_own_policy_goes_elsewhere():
    farm = Farm(2, n_retries=2)
    _ = farm.handle.schema
    a, b = farm.solvers
    a.error = httpx.ReadError("reset")
    assert farm.host(1.0) == "b"
    assert (a.calls, b.calls, len(farm.sleeps)) == (["apply"], ["apply"], 1)
    b.error, farm.now = httpx.ReadError("reset"), 100.0
    with pytest.raises(ConnectionLost, match="It was tried 3 times"):
        farm.host(2.0)
    assert len(a.calls) + len(b.calls) == 2 + 3  # one request each, whatever the policies of the replicas


def test_calls_wait_for_the_first_that_is_free_and_not_behind_one_of_them(pool):
    farm = Farm(2, n_lanes=1)
    a, b = farm.solvers
    _ = farm.handle.schema
    a.is_open.clear()
    b.is_open.clear()
    first = [pool.submit(farm.host, k) for k in range(2)]
    wait_until(lambda: [solver.n_now for solver in farm.solvers] == [1, 1])
    others = [pool.submit(farm.host, 10 + k) for k in range(3)]
    wait_until(lambda: farm.handle._group._waiting.total() == 3)
    b.is_open.set()
    assert [call.result(5) for call in others] == ["b"] * 3
    a.is_open.set()
    assert sorted(call.result(5) for call in first) == ["a", "b"]


def test_several_calls_that_break_off_are_one_failure(pool):
    farm = Farm(2)
    a, _ = farm.solvers
    _ = farm.handle.schema
    for solver in farm.solvers:
        solver.is_open.clear()
    calls = [pool.submit(farm.host, k) for k in range(4)]
    wait_until(lambda: [solver.n_now for solver in farm.solvers] == [2, 2])
    a.error = httpx.ReadError("reset")
    for solver in farm.solvers:
        solver.is_open.set()
    outcomes = [call.exception(5) or call.result(5) for call in calls]
    assert [type(outcome) for outcome in outcomes].count(ConnectionLost) == 2 and outcomes.count("b") == 2
    a.error, farm.now = None, 1.0
    assert {farm.host(10 + k) for k in range(3)} == {"a", "b"}


def test_a_pullback_whose_replica_is_gone_is_solved_elsewhere():
    farm = Farm(2)
    assert farm.host(1.0) == "a"
    farm.solvers[0].error = REFUSED
    assert farm.pull(1.0) == "b"
    farm.solvers[0].error = None
    farm.now = 2.0
    assert farm.pull(1.0) in "ab"


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [(500, ComponentFailed), (503, Overloaded), (httpx.ReadTimeout("slow"), CallTimeout)],
    ids=["component failed", "overloaded", "time-out"],
)
def test_other_errors_are_told_and_leave_nobody_out(trouble, kind):
    farm = Farm(2)
    _ = farm.handle.schema
    a, b = farm.solvers
    if isinstance(trouble, int):
        a.status = trouble
    else:
        a.error = trouble
    with pytest.raises(kind):
        farm.host(0)
    assert len(a.calls) == 1 and b.calls == []
    a.status, a.error = 200, None
    assert [farm.host(k) for k in range(1, 5)] == list("baba")


def test_a_busy_server_is_not_a_dead_one(pool):
    farm = Farm(2)
    _ = farm.handle.schema
    a, _ = farm.solvers
    a.is_open.clear()
    call = pool.submit(farm.host, 0)
    wait_until(lambda: a.n_now == 1)
    for hour in range(1, 100):
        farm.now = 3600.0 * hour
        assert farm.host(hour) == "b"
    assert a.asked == ["openapi.json", "apply"]  # and is asked nothing while it works
    a.is_open.set()
    assert call.result(5) == "a"


def test_nobody_left():
    farm = Farm(2)
    _ = farm.handle.schema
    for solver in farm.solvers:
        solver.error = REFUSED
    for _ in range(2):  # also when both are left out already: there is nothing to lose
        with pytest.raises(Unreachable) as caught:
            farm.host()
        assert isinstance(caught.value, TransientError)
        lines = str(caught.value).splitlines()
        assert lines[0] == "'apply' of Tesseract 'fem': none of its 2 replicas can be reached. Nothing was started."
        assert lines[1].startswith("  http://a: cannot connect (refused)")
        assert lines[2].startswith("  http://b: cannot connect (refused)")
    assert [len(solver.calls) for solver in farm.solvers] == [2, 2] and farm.sleeps == []
    farm.solvers[1].error = None
    assert farm.host() == "b"


def test_it_is_logged_who_is_left_out(caplog):
    farm = Farm(2)
    _ = farm.handle.schema
    farm.solvers[0].error = REFUSED
    with caplog.at_level("INFO", "tesseract_flow"):
        farm.host()
        assert "http://a is left out for 1 s: cannot connect (refused)" in caplog.text
        farm.solvers[0].error, farm.now = None, 5.0
        farm.host(1.0)
        farm.host(2.0)
    assert "http://a answers again" in caplog.text


def test_who_has_to_serve_while_left_out_is_not_left_out_for_longer(caplog):
    farm = Farm(2)
    _ = farm.handle.schema
    for solver in farm.solvers:
        solver.error = REFUSED
    for _ in range(5):  # as retries would have it
        with pytest.raises(Unreachable):
            farm.host()
    assert caplog.text.count("is left out") == 2
    farm.now = 1.5  # now both are due
    with pytest.raises(Unreachable):
        farm.host()
    assert caplog.text.count("is left out for 2 s") == 2


def test_a_component_without_a_name_is_not_called_by_its_class():
    farm = Farm(2)
    for solver in farm.solvers:
        solver.schema = document("Tesseract")
    _ = farm.handle.schema
    for solver in farm.solvers:
        solver.error = REFUSED
    with pytest.raises(Unreachable, match=r"^'apply' of Tesseract 'replicas': none"):
        farm.host()


# One schema.


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (document("mesh"), "http://b has name 'mesh', http://a has 'fem'"),
        (document("fem").replace(b'"1.0"', b'"1.1"'), r"http://b has version '1\.1', http://a has '1\.0'"),
        (document("fem", ("apply",)), "http://b has other inputs, outputs or endpoints than http://a"),
    ],
    ids=["name", "version", "digest"],
)
def test_replicas_that_differ(other, message):
    farm = Farm(3)
    farm.solvers[1].schema = other
    for _ in range(2):
        with pytest.raises(SchemaError, match=message):
            farm.host()
    assert all(solver.calls == [] for solver in farm.solvers)


def test_schemas_are_asked_for_once():
    farm = Farm(3)
    for _ in range(2):
        assert farm.handle.schema.name == farm.handle.name == "fem"
    farm.host()
    assert [solver.asked.count("openapi.json") for solver in farm.solvers] == [1, 1, 1]


def test_a_replica_that_comes_late_is_compared_then():
    farm = Farm(2)
    a, _ = farm.solvers
    a.error = REFUSED
    a.schema = document("mesh")
    assert farm.handle.schema.name == "fem"
    assert farm.host(0) == "b"
    a.error, farm.now = None, 2.0
    with pytest.raises(SchemaError, match="http://a has name 'mesh', http://b has 'fem'"):
        farm.host(1)
    assert a.calls == []


def test_a_replica_that_is_too_busy_for_its_schema(monkeypatch):
    monkeypatch.setattr(replicas_module, "_SCHEMA_PATIENCE", 0.05)
    farm = Farm(2)
    a, _ = farm.solvers
    may_answer = threading.Event()

    def busy(request: httpx.Request) -> httpx.Response:
        assert may_answer.wait(10)
        return a(request)

    slow = HttpTesseract("http://a", transport=httpx.MockTransport(busy))
    handle = ReplicatedTesseract((slow, farm.handles[1]))
    assert handle.schema.name == "fem"
    may_answer.set()
    assert {handle.apply({"x": k})["host"] for k in range(2)} == {"a", "b"}


def test_nobody_tells_a_schema():
    farm = Farm(2)
    for solver in farm.solvers:
        solver.error = REFUSED
    with pytest.raises(Unreachable, match="none of its 2 replicas"):
        _ = farm.handle.schema
    for solver in farm.solvers:
        solver.error = None
    assert farm.handle.schema.name == "fem"


# Handles.


def test_opened_by_their_addresses():
    handle = open_tesseract(["http://a", "b:8000"], label="fem", token="t", n_lanes=2, longest_pause=5.0)
    replicas = tuple(HttpTesseract(url, label="fem", token="t", n_lanes=2) for url in ("http://a", "b:8000"))
    assert handle == ReplicatedTesseract(replicas, label="fem", longest_pause=5.0)
    assert repr(handle) == "ReplicatedTesseract(fem: http://a, http://b:8000)"
    assert handle.name == "fem"
    assert open_tesseract([HttpTesseract("http://a")]) == ReplicatedTesseract((HttpTesseract("http://a"),))


@pytest.mark.parametrize("copied", [lambda handle: handle, lambda handle: pickle.loads(pickle.dumps(handle))])
def test_equal_handles_share_what_they_know(copied: Callable[[Any], Any]):
    handle = open_tesseract(["http://a", "http://b"])
    group = handle._group  # type: ignore[attr-defined]
    again = copied(handle)
    assert again == handle and hash(again) == hash(handle) and again._group is group
    assert open_tesseract(["http://a", "http://b"])._group is group  # type: ignore[attr-defined]
    assert open_tesseract(["http://b", "http://a"]) != handle


@pytest.mark.parametrize(
    ("sources", "options", "kind", "message"),
    [
        ([], {}, OptionError, "empty list"),
        (["http://a", "http://a/"], {}, OptionError, "http://a is in the list of replicas twice"),
        (["http://a"], {"first_pause": 0.0}, OptionError, "first_pause is 0.0"),
        (["http://a"], {"first_pause": 9.0, "longest_pause": 5.0}, OptionError, "longest_pause 5.0"),
        (["http://a", 7], {}, TypeError, "replicas are named by their URLs, or are handles; got '7', a int"),
        (["http://a", "ftp://b"], {}, Unreachable, "http://host:8000"),
        (["http://a", "http://b"], {"tokn": "s3cr3t"}, TypeError, "Did you mean 'token'"),
        ([HttpTesseract("http://a")], {"token": "t"}, TypeError, "come too late"),
    ],
)
def test_lists_without_sense(sources, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        open_tesseract(sources, **options)
    assert "s3cr3t" not in str(caught.value)
