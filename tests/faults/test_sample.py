"""A sample of the fault matrix, over all ways but that of a flow, and what the table says about itself."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from tests.faults.faults import EVERYWHERE, FAULTS, Comes
from tests.faults.matrix import Bench, cells

# The fault waits for the client's patience, or longer.
SLOW = ("CallTimeout",)
STRIDE = 24


def test_there_are_enough_of_them_and_each_has_its_own_name():
    names = Counter((fault.name, endpoint) for fault in FAULTS for endpoint in fault.at)
    assert not [name for name, n in names.items() if n > 1]
    assert all(len([fault for fault in FAULTS if endpoint in fault.at]) >= 87 for endpoint in EVERYWHERE)
    assert all(fault.errors or fault.comes in (Comes.RIGHT, Comes.ASKED_FOR) for fault in FAULTS)


@pytest.mark.parametrize("way", ["eager", pytest.param("jitted", marks=pytest.mark.slow), "concurrent"])
def test_a_sample_comes_out_right(server, way):
    quick = [cell for cell in cells(way) if not set(cell.fault.errors) & set(SLOW)]
    start = ["eager", "jitted", "concurrent"].index(way) * STRIDE // 3
    bench = Bench(server)
    failing = [str(one) for cell in itertools.islice(quick, start, None, STRIDE) for one in bench.run(cell)]
    assert not failing, "\n".join(failing)
