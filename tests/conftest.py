"""What holds for every test: the numerical settings, a Prefect that is nobody's own, and keys that can be repeated.

The environment is set before anything that reads it is imported, and processes that a test starts inherit it.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.planted import files_with_it

if TYPE_CHECKING:
    import jax

# Also where the checkout was installed before it had the plugin.
pytest_plugins = ["tesseract_flow.testing.plugin"]

# Many tests compile the same programs. For one worker and one session, so that no two processes write one file.
_compiled = tempfile.TemporaryDirectory(prefix="tesseract-flow-compiled-", ignore_cleanup_errors=True)
_prefect_home = tempfile.TemporaryDirectory(prefix="tesseract-flow-tests-", ignore_cleanup_errors=True)

# A server, key or profile that the developer uses must be out of reach, not merely overridden in part.
for _name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[_name]

os.environ.update(
    PREFECT_HOME=_prefect_home.name,
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    # Two workers with a server each on two cores: who waits for SQLite is patient, and a 503 is asked again.
    PREFECT_SERVER_DATABASE_TIMEOUT="60",
    PREFECT_CLIENT_MAX_RETRIES="10",
    DO_NOT_TRACK="1",
    JAX_PLATFORMS="cpu",
    JAX_ENABLE_X64="1",
    # Mixed precision in a rule is a mistake to be found, not to be promoted away.
    JAX_NUMPY_DTYPE_PROMOTION="strict",
    JAX_COMPILATION_CACHE_DIR=_compiled.name,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.02",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    MPLBACKEND="Agg",
)

# Compilation makes the first example slow and says nothing about the property.
hypothesis.settings.register_profile("tesseract-flow", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tesseract-flow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="seed of the `key` fixture and of random loops, instead of one per test"
    )
    parser.addoption("--cases", type=int, default=3, help="so many of a test's cases are quick, the others slow")
    parser.addoption("--graphs", type=int, default=200, help="random programs for the dataflow executor")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    files_with_prefect = set()
    for item in items:
        if "prefect_harness" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.prefect)
            files_with_prefect.add(item.path)
    for item in items:
        # A file stays with one worker, for its fixtures, and all that need Prefect's server share one.
        group = "prefect" if item.path in files_with_prefect else str(item.path.relative_to(config.rootpath))
        item.add_marker(pytest.mark.xdist_group(group))
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow") is None:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for of_one_test in cases.values():
        in_sample = sample(len(of_one_test), config.getoption("--cases"))
        for k, item in enumerate(of_one_test):
            if k not in in_sample:
                item.add_marker(pytest.mark.slow)


def sample(n: int, size: int) -> set[int]:
    """So many of n cases, the same ones each time; by the golden ratio, so that each factor of a product varies."""
    if n <= size:
        return set(range(n))
    chosen: dict[int, None] = {}
    k = 0
    while len(chosen) < size:
        chosen[int(n * ((k * 0.6180339887498949) % 1))] = None
        k += 1
    return set(chosen)


def pytest_unconfigure() -> None:
    _prefect_home.cleanup()
    _compiled.cleanup()


@pytest.fixture(scope="session", autouse=True)
def no_secret_is_written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end the temporary folders of all tests are searched for the secret that some of them have planted."""
    yield
    for folder in (tmp_path_factory.getbasetemp(), _prefect_home.name):
        found = list(files_with_it(Path(folder)))
        assert not found, f"a planted secret was written to {found}"


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A random key that differs from test to test but not from run to run; a failure shows its seed."""
    import jax

    seed = request.config.getoption("--seed")
    if seed is None:
        seed = zlib.crc32(request.node.name.encode())
    print(f"random key from --seed={seed}")
    return jax.random.key(seed)


@pytest.fixture(scope="session")
def prefect_harness(prefect_offline: None) -> None:
    """Prefect's API on a database of its own. It takes some 10 s once, so only tests that run a flow ask for it."""
