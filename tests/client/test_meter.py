"""Requests are counted once each, in every open block, whatever thread they come from."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tesseract_flow.client import (
    AtOnce,
    HttpTesseract,
    charged_to,
    count_requests,
    current_account,
    open_account,
    own_requests,
    record_request,
)
from tesseract_flow.errors import ComponentFailed, Unreachable, WireError
from tests.client.helpers import document, mocked


def test_blocks_see_what_happens_while_they_are_open():
    record_request("fem", "apply")
    with count_requests() as outer:
        record_request("fem", "apply")
        with count_requests() as inner:
            record_request("fem", "vector_jacobian_product")
            record_request("section", "apply")
        record_request("fem", "apply")
    record_request("fem", "apply")
    assert outer == {"fem.apply": 2, "fem.vector_jacobian_product": 1, "section.apply": 1}
    assert inner == {"fem.vector_jacobian_product": 1, "section.apply": 1}
    assert (outer.n_total, inner.n_total) == (4, 2)
    assert (outer.n_of("apply"), inner.n_of("apply"), inner.n_of("jacobian")) == (3, 1, 0)


def test_names_may_have_dots():
    with count_requests() as counts:
        record_request("10.0.0.1:8000", "apply")
    assert counts.n_of("apply") == 1


def test_closing_a_block_leaves_its_equal_open():
    with count_requests() as outer:
        with count_requests():
            pass  # both are empty, so equal as mappings
        record_request("fem", "apply")
    assert outer.n_total == 1


def test_a_block_closes_when_it_fails():
    with pytest.raises(KeyError), count_requests() as counts:
        raise KeyError
    record_request("fem", "apply")
    assert counts.n_total == 0


def test_threads_lose_no_count():
    n_threads, n_calls = 8, 500
    start = threading.Barrier(n_threads)

    def work(k: int) -> None:
        start.wait()
        for i in range(n_calls):
            record_request(f"t{k}", f"endpoint{i % 50}")
            assert counts.n_total > 0 and counts.n_of("endpoint0") > 0  # while others add keys

    with count_requests() as counts, ThreadPoolExecutor(n_threads) as pool:
        record_request("t", "endpoint0")
        list(pool.map(work, range(n_threads)))
    assert counts.n_total == n_threads * n_calls + 1


def test_attempts_count_and_questions_for_the_schema_do_not():
    handle = mocked(b"{}").handle(label="fem")
    failing = mocked(b"", status=500).handle(label="fem")
    with count_requests() as counts:
        handle.request("apply", {"inputs": {}})
        with pytest.raises(ComponentFailed):
            failing.request("apply", {"inputs": {}})
        assert mocked(document()).handle().schema.name == "probe"
        with pytest.raises(WireError):  # never left
            handle.request("apply", {"inputs": {"x": object()}})
    assert counts == {"fem.apply": 2}


def test_a_refused_connection_counts_at_each_attempt(refused_url):
    handle = HttpTesseract(refused_url, label="fem", sleep=lambda seconds: None)
    with count_requests() as counts, pytest.raises(Unreachable):
        handle.request("apply", {"inputs": {}})
    assert counts == {"fem.apply": 1 + handle.retry.n_retries}


# ------------------------------------------------------------------------------------------------ whose a request is


def test_blocks_of_several_threads_see_their_own():
    met = threading.Barrier(8, timeout=20.0)

    def run(k: int) -> int:
        with own_requests() as own:
            met.wait()  # all blocks are open
            for _ in range(k):
                record_request("fem", "apply")
            met.wait()
        return own.n_total

    with count_requests() as everything, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == list(range(8))
    assert everything.n_total == sum(range(8))


def test_work_on_other_threads_belongs_to_who_caused_it():
    with own_requests() as own:
        with AtOnce(4) as at_once:
            list(at_once.map(lambda _: record_request("fem", "apply"), range(5)))
        account = current_account()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(record_request, "fem", "apply").result()  # of somebody else
            pool.submit(contextvars.copy_context().run, record_request, "fem", "jacobian").result()

            def charged() -> None:
                with charged_to(account):
                    record_request("fem", "abstract_eval")

            pool.submit(charged).result()
        with charged_to(None):
            record_request("fem", "apply")
    record_request("fem", "apply")
    assert own == {"fem.apply": 5, "fem.jacobian": 1, "fem.abstract_eval": 1}
    assert (own.n_total, own.n_solves) == (7, 6)


def test_a_block_within_a_block_counts_for_both():
    with own_requests() as outer:
        record_request("fem", "apply")
        with own_requests() as inner:
            record_request("fem", "apply")
        record_request("fem", "apply")
    assert (outer.n_total, inner.n_total) == (3, 1)


def test_numbers_of_accounts_are_used_again():
    with own_requests():
        first = current_account()
        with own_requests():
            second = current_account()
            assert first is not None and second is not None
            assert open_account(second.number) is second is not first
        assert open_account(second.number) is None
        with own_requests():
            third = current_account()
            assert third is not None and third.number == second.number
    assert open_account(first.number) is None
    assert current_account() is None
