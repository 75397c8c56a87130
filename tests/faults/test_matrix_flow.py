"""The fault matrix, where calls are tasks of a Prefect flow."""

from __future__ import annotations

import pytest
from prefect import flow

from tesseract_flow.tasks import PrefectSubmitter
from tests.faults.faults import EVERYWHERE
from tests.faults.matrix import RETRY, Bench, cells


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", EVERYWHERE)
def test_every_fault_comes_out_right(server, endpoint, prefect_harness):
    @flow
    def run() -> list[str]:
        bench = Bench(server, PrefectSubmitter(retry=RETRY))
        return [str(one) for cell in cells("flow", [endpoint]) for one in bench.run(cell)]

    failing = run()
    assert not failing, "\n".join(failing)
