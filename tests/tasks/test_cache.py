"""The result cache in a Prefect block: the same answers, whoever asks and from wherever."""

import asyncio
import pickle
from pathlib import Path

import numpy as np
import pytest
from prefect.filesystems import LocalFileSystem, WritableFileSystem
from pydantic import Field

from tesseract_flow.client import DirectoryCache, open_tesseract
from tesseract_flow.client.caches.probation import on_probation
from tesseract_flow.tasks import PrefectCache
from tests.client.keeping import Numbering, square

X = {"x": np.array([1.0, 2.0, 3.0])}


class Bucket(WritableFileSystem):
    """A block whose methods are coroutines, as some are."""

    _block_type_slug = "test-bucket"
    files: dict[str, bytes] = Field(default_factory=dict)

    async def read_path(self, path: str) -> bytes:
        return self.files[path]

    async def write_path(self, path: str, content: bytes) -> None:
        self.files[path] = content


@pytest.fixture(params=["local", "bucket"])
def storage(request, tmp_path) -> WritableFileSystem:
    return LocalFileSystem(basepath=str(tmp_path)) if request.param == "local" else Bucket()


def test_answers_come_back(storage):
    cache = PrefectCache(storage)
    handle = open_tesseract(Numbering(lambda n: {"n": n, "y": np.arange(3.0)}), cache=cache)
    for _ in range(2):
        answer = handle.apply(X)
        assert (answer["n"], answer["y"].tolist()) == (0, [0.0, 1.0, 2.0])
    assert handle.apply({"x": -X["x"]})["n"] == 1
    assert cache.stats() == {"hits": 1, "misses": 2, "merged": 0, "evicted": 0, "skipped": 0}
    assert open_tesseract(Numbering(), cache=PrefectCache(storage)).apply(X)["n"] == 0


def test_inside_of_an_event_loop(storage):
    handle = open_tesseract(Numbering(), cache=PrefectCache(storage))

    async def ask():
        return [handle.apply(X)["n"], handle.apply(X)["n"]]

    assert asyncio.run(ask()) == [0, 0]


def test_the_answer_of_a_failed_evaluation_is_let_go(storage, tmp_path):
    handle = open_tesseract(Numbering(), cache=PrefectCache(storage))
    with on_probation() as probation:
        assert [handle.apply(X)["n"], handle.apply(X)["n"]] == [0, 0]
    probation.forget()
    assert [handle.apply(X)["n"], handle.apply(X)["n"]] == [1, 1]
    assert open_tesseract(Numbering(), cache=PrefectCache(storage)).apply(X)["n"] == 1


def test_an_answer_that_cannot_be_overwritten_is_not_read(caplog):
    class ReadOnly(Bucket):
        _block_type_slug = "test-read-only"
        is_closed: bool = False

        async def write_path(self, path: str, content: bytes) -> None:
            if self.is_closed:
                raise PermissionError(path)
            await super().write_path(path, content)

    storage = ReadOnly()
    handle = open_tesseract(Numbering(), cache=PrefectCache(storage))
    with on_probation() as probation:
        handle.apply(X)
    storage.is_closed = True
    probation.forget()
    assert [handle.apply(X)["n"], handle.apply(X)["n"]] == [1, 2]
    assert "holds the answer of a failed evaluation" in caplog.text
    assert f"remove {next(iter(storage.files))} before others do" in caplog.text
    storage.is_closed = False
    assert [handle.apply(X)["n"], handle.apply(X)["n"]] == [3, 3]


def test_damage_and_trouble_are_misses(tmp_path, caplog):
    handle = open_tesseract(Numbering(), cache=PrefectCache(LocalFileSystem(basepath=str(tmp_path))))
    handle.apply(X)
    (file,) = tmp_path.rglob("*.[0-9a-f]*[0-9a-f].json")
    file.write_bytes(file.read_bytes()[:-9])
    assert [handle.apply(X)["n"] for _ in range(2)] == [1, 1]
    file.unlink()
    file.mkdir()
    assert [handle.apply(X)["n"] for _ in range(2)] == [2, 3]
    assert "The call goes on without it" in caplog.text


def test_a_local_one_is_a_folder_like_any_other(tmp_path: Path):
    component = square()
    open_tesseract(component, cache=PrefectCache(LocalFileSystem(basepath=str(tmp_path)))).apply(X)
    cache = DirectoryCache(tmp_path)
    open_tesseract(square(), cache=cache).apply(X)
    assert cache.stats()["hits"] == 1


def test_value(storage, tmp_path):
    cache = PrefectCache(storage)
    assert cache == PrefectCache(storage)
    assert hash(cache) == hash(PrefectCache(storage))
    assert cache != PrefectCache(storage, "elsewhere")
    assert cache != PrefectCache(LocalFileSystem(basepath=str(tmp_path / "other")))
    if isinstance(storage, LocalFileSystem):
        assert pickle.loads(pickle.dumps(cache)) == cache
    assert "basepath" not in repr(cache)
