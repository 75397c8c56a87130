"""The fault matrix, where calls are jitted."""

from __future__ import annotations

import pytest

from tests.faults.faults import EVERYWHERE
from tests.faults.matrix import Bench, cells


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", EVERYWHERE)
def test_every_fault_comes_out_right(server, endpoint):
    bench = Bench(server)
    failing = [str(one) for cell in cells("jitted", [endpoint]) for one in bench.run(cell)]
    assert not failing, "\n".join(failing)
