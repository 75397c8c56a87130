"""The lease: one owner at a time, whatever the clocks say; and a dead one loses it."""

from __future__ import annotations

import itertools
import json
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.errors import StorageError
from tesseract_flow.storage import Lease, UrlStore

LENGTH = 60.0


class World:
    """A store, and time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.store = UrlStore(f"memory://lease-{uuid.uuid4().hex}")
        self.store.make()
        self.while_waiting = lambda: None

    def lease(self, skew: float = 0.0, wait=None) -> Lease:
        return Lease(
            self.store,
            length=LENGTH,
            clock=lambda: 1e9 + self.now + skew,
            ticks=lambda: self.now,
            wait=wait or self.wait,
            renews=False,
        )

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.while_waiting()
        return False


def test_one_owner_at_a_time():
    world = World()
    first = world.lease()
    world.while_waiting = first.renew
    with pytest.raises(StorageError, match=r"is in use by process \d+ on .*, which renews its lease"):
        world.lease()
    first.check()
    first.release()
    before = world.now
    assert world.lease().generation == 2 and world.now == before  # given back, so nobody waits


def test_a_dead_owner_loses_it_after_its_length_and_knows():
    world = World()
    first = world.lease()
    began = world.now
    second = world.lease()
    assert LENGTH <= world.now - began <= 1.2 * LENGTH
    second.check()
    with pytest.raises(StorageError, match=r"lost its lease .* nothing more is written"):
        first.check()
    with pytest.raises(StorageError, match=r"took it over|not be renewed"):
        first.renew()
    # What the first one gives back now is not its own.
    first.release()
    second.renew()
    second.check()


def test_an_owner_that_could_not_renew_in_time_writes_no_more_even_if_nobody_took_over():
    world = World()
    first = world.lease()
    world.now += LENGTH - 1
    first.check()
    world.now += 1
    with pytest.raises(StorageError, match="could not be renewed within 60 s"):
        first.check()


@pytest.mark.parametrize("skew", [-250.0, 250.0])
def test_clocks_that_differ_take_nothing_from_an_owner_that_lives(skew):
    world = World()
    first = world.lease(skew)
    world.while_waiting = first.renew
    with pytest.raises(StorageError, match="in use"):
        world.lease()


def test_what_ran_out_long_ago_needs_no_watching():
    world = World()
    world.lease()
    world.now += 10_000.0
    before = world.now
    assert world.lease().generation == 2 and world.now == before


def test_of_several_who_take_over_at_once_one_wins():
    world = World()
    world.lease()
    # Just before the second creates its number, somebody else does.
    create = world.store.create
    taken = []

    def create_second(name, data):
        if not taken:
            taken.append(name)
            create(name, json.dumps({"owner": "a rival", "nonce": "r", "expires": 1e9 + world.now + LENGTH}).encode())
        create(name, data)

    world.store.create = create_second  # type: ignore[method-assign]
    steps = itertools.count()

    def renew_rival():
        if taken:
            world.store.write(taken[0], json.dumps({"owner": "a rival", "nonce": "r", "n": next(steps)}).encode())

    world.while_waiting = renew_rival
    with pytest.raises(StorageError, match="in use by a rival"):
        world.lease()


def test_a_damaged_lease_is_watched_and_then_taken():
    world = World()
    world.lease()
    world.store.write("lease-00000001.json", b"{")
    assert world.lease().generation == 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["take", "renew", "pause", "release"])), max_size=25))
@settings(max_examples=60)
def test_never_two_owners(actions):
    world = World()
    held: dict[str, Lease] = {}
    for who, what in actions:
        others = [lease for name, lease in held.items() if name != who]
        match what:
            case "take" if who not in held:
                # Others go on living while this one watches, but those that are paused.
                world.while_waiting = lambda others=others: (
                    [lease.renew() for lease in others if is_valid(lease)] and None
                )
                try:
                    held[who] = world.lease()
                except StorageError:
                    continue
            case "renew" if who in held:
                try:
                    held[who].renew()
                except StorageError:
                    del held[who]
            case "release" if who in held:
                held.pop(who).release()
            case "pause":
                world.now += LENGTH / 2
        assert sum(map(is_valid, held.values())) <= 1


def renew_all(leases: list[Lease]) -> None:
    for lease in filter(is_valid, leases):
        lease.renew()


def is_valid(lease: Lease) -> bool:
    try:
        lease.check()
    except StorageError:
        return False
    return True
