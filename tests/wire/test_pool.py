"""Files that are written again and again: what is read is what was written, no two calls share one, none is left."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tesseract_flow.errors import WireError
from tesseract_flow.wire import BinrefPool, dumps, loads

ROOT = Path(__file__).resolve().parents[2]


def sent(pool: BinrefPool, tree: Any, **options: Any) -> Any:
    """What the other side reads of a tree."""
    with pool.writer() as writer:
        read = loads(dumps(tree, "binref", binref=writer, **options), binref_root=pool.directory)
        writer.release()
    return read


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["mapped", "written"])
def how(request, monkeypatch):
    """With and without a way to reserve room on the disk, without which nothing is mapped."""
    if request.param == "written":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    pool = BinrefPool(tmp_path_factory.mktemp("pool"))
    yield pool
    pool.close()


arrays = st.lists(
    hnp.arrays(
        st.sampled_from(["float64", "float32", "int8", "bool", "complex128"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
    ),
    max_size=5,
)


@given(tree=arrays, compression=st.sampled_from([None, "lz4"]), inline_below=st.sampled_from([0, 64, 2**40]))
@settings(max_examples=60, deadline=None)
def test_what_is_read_is_what_was_written_in_one_file_after_all(lasting, tree, compression, inline_below):
    read = sent(lasting, tree, compression=compression, inline_below=inline_below)
    assert [(a.dtype, a.shape, a.tobytes()) for a in read] == [(a.dtype, a.shape, a.tobytes()) for a in tree]
    assert len(names(lasting.directory)) <= 1


@pytest.mark.usefixtures("how")
def test_a_file_is_used_again_and_grows(tmp_path):
    pool = BinrefPool(tmp_path)
    seen = set()
    for n in (10, 100_000, 3, 200_000):
        x = np.random.default_rng(n).normal(size=n)
        np.testing.assert_array_equal(sent(pool, x), x)
        seen.update(names(tmp_path))
    assert len(seen) == 1
    pool.close()
    assert names(tmp_path) == []


def test_small_arrays_are_in_the_text(tmp_path):
    with BinrefPool(tmp_path).writer() as writer:
        body = dumps({"a": np.ones(10), "b": np.ones(1000)}, "binref", binref=writer, inline_below=100)
    document = orjson.loads(body)
    assert [document[key]["data"]["encoding"] for key in "ab"] == ["base64", "binref"]


def test_buffers_are_aligned(tmp_path):
    with BinrefPool(tmp_path).writer() as writer:
        references = [writer.write(bytes(n)) for n in (3, 100, 0, 1)]
    assert [int(reference.split(":")[1]) for reference in references] == [0, 64, 192, 192]


def test_a_file_that_may_still_be_read_is_not_used_again(tmp_path):
    pool = BinrefPool(tmp_path)
    with pool.writer() as writer:
        reference = writer.write(np.arange(5.0).data)
        (before,) = names(tmp_path)
        reader = os.open(tmp_path / before, os.O_RDONLY)  # the other side has found it, and takes its time
    assert names(tmp_path) == []
    sent(pool, np.zeros(5))
    assert before not in names(tmp_path) and reference.startswith(before)
    assert np.frombuffer(os.read(reader, 40)).tolist() == [0, 1, 2, 3, 4]
    os.close(reader)


def test_an_error_deletes_the_file(tmp_path):
    pool = BinrefPool(tmp_path)
    with pytest.raises(WireError, match="dtype"), pool.writer() as writer:
        dumps([np.ones(5), np.array(["text"])], "binref", binref=writer)
    assert names(tmp_path) == []


def test_what_is_kept_is_bounded(tmp_path):
    pool = BinrefPool(tmp_path, max_bytes=100_000)
    sent(pool, np.zeros(20_000))  # larger than all that may be kept
    assert names(tmp_path) == []
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(pool.writer()) for _ in range(5)]
        for writer in writers:
            writer.write(bytes(40_000))
            assert len(names(tmp_path)) == writers.index(writer) + 1
        for writer in writers:
            writer.release()
    assert len(names(tmp_path)) == 2
    pool.close()


@pytest.mark.usefixtures("how")
def test_threads_do_not_share_files(tmp_path):
    pool = BinrefPool(tmp_path)

    def check(seed: int) -> None:
        x = np.random.default_rng(seed).normal(size=5000 + seed)
        np.testing.assert_array_equal(sent(pool, x), x)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(check, range(80)))
    assert 1 <= len(names(tmp_path)) <= 8
    pool.close()
    assert names(tmp_path) == []


def test_files_go_with_the_pool(tmp_path):
    pool = BinrefPool(tmp_path)
    sent(pool, np.ones(9))
    assert len(names(tmp_path)) == 1
    del pool
    gc.collect()
    assert names(tmp_path) == []


def test_what_comes_back_to_a_closed_pool_is_deleted(tmp_path):
    pool = BinrefPool(tmp_path)
    with pool.writer() as writer:
        writer.write(b"1")
        pool.close()
        assert len(names(tmp_path)) == 1
        writer.release()
    assert names(tmp_path) == []


@pytest.mark.parametrize("harm", ["deleted", "shortened", "replaced"])
def test_a_file_that_somebody_has_touched_is_given_up(tmp_path, harm):
    pool = BinrefPool(tmp_path)
    sent(pool, np.ones(9))
    (name,) = names(tmp_path)
    match harm:
        case "deleted":
            (tmp_path / name).unlink()
        case "shortened":
            os.truncate(tmp_path / name, 1)  # to write to its mapping would kill this process
        case "replaced":
            (tmp_path / name).unlink()
            (tmp_path / name).write_bytes(bytes(4096))
    np.testing.assert_array_equal(sent(pool, np.arange(9.0)), np.arange(9.0))
    assert name not in names(tmp_path)


def test_a_missing_folder_is_a_wire_error(tmp_path):
    with BinrefPool(tmp_path / "nowhere").writer() as writer, pytest.raises(WireError, match=r"cannot write .*nowhere"):
        writer.write(b"1")


def test_a_full_disk_is_a_wire_error(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pool = BinrefPool(tmp_path)
    sent(pool, np.ones(5))
    with monkeypatch.context() as patch, pool.writer() as writer:
        patch.setattr(os, "posix_fallocate", full)
        writer.write(bytes(8))  # there is room for this one
        with pytest.raises(WireError, match="No space left"):
            writer.write(bytes(100_000))
    assert names(tmp_path) == []
    np.testing.assert_array_equal(sent(pool, np.arange(9.0)), np.arange(9.0))


def test_files_of_a_killed_process_are_deleted_by_the_next_pool_and_those_of_the_living_are_not(tmp_path):
    mine = BinrefPool(tmp_path)
    sent(mine, np.ones(5))
    kept = names(tmp_path)
    program = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from tesseract_flow.wire import BinrefPool
        writer = BinrefPool({str(tmp_path)!r}).writer()
        print(writer.write(b"1234"), flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline().partition(":")[0] in names(tmp_path)
        finally:
            child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert len(names(tmp_path)) == 2
    other = BinrefPool(tmp_path)
    with other.writer() as writer:
        writer.write(b"1")
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == kept
