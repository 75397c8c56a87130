"""A folder of answers: whole files or none, believed only when everything about them is right, shared by processes."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesseract_flow.client import DirectoryCache, HttpTesseract, count_requests
from tesseract_flow.client.caches.directory import FOLDER, existing
from tesseract_flow.client.caches.entries import parsed
from tesseract_flow.client.caches.files import Inventory
from tesseract_flow.errors import OptionError
from tests.client.helpers import array, document, mocked
from tests.client.keeping import Numbering, kept, square

ROOT = Path(__file__).parents[3]
X = {"x": np.array([1.0, 2.0, 3.0])}
ANSWER = {
    "y": np.arange(3.0),
    "label": "steel",
    "n": 3,
    "ratio": float("nan"),
    "nothing": None,
    "parts": [1, 2.0, True],
}


def filled(path: Path, n: int = 1, **options: Any) -> tuple[DirectoryCache, list[Path]]:
    """A cache with the answers to i = 0, 1, ..., the first one unused for longest, and its files in this order."""
    cache = DirectoryCache(path, **options)
    handle = kept(Numbering(), cache)
    files: list[Path] = []
    for i in range(n):
        handle.apply({"i": i})
        files += set(entries(path)) - set(files)
        os.utime(files[-1], (1000.0 + i, 1000.0 + i))
    return cache, files


def entries(path: Path) -> list[Path]:
    return sorted(file for file in (path / FOLDER).glob("*.json") if not file.name.endswith(".component.json"))


# Files


def test_answers_outlive_the_handle(tmp_path: Path) -> None:
    first = kept(Numbering(lambda n: ANSWER), DirectoryCache(tmp_path)).apply(X)
    with count_requests() as counts:
        again = kept(Numbering(), DirectoryCache(tmp_path)).apply(X)
    assert counts.n_total == 0
    assert repr(again) == repr(first) == repr(ANSWER)


def test_files_are_private_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    filled(tmp_path / "a" / "b", 2)
    folder = tmp_path / "a" / "b" / FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    (component,) = set(folder.iterdir()) - set(entries(tmp_path / "a" / "b"))
    assert component.name.endswith(".component.json")


def test_nothing_is_made_before_the_first_answer(tmp_path: Path) -> None:
    cache = DirectoryCache(tmp_path / "cache")
    assert cache.stats()["entries"] == 0
    assert not (tmp_path / "cache").exists()


def test_no_credentials_in_files(tmp_path: Path) -> None:
    mock = mocked(lambda request: _reply(request))
    handle = kept(
        mock.handle("http://bob:sesame@solver.example:8000", headers={"X-Key": "abracadabra"}), _cache(tmp_path)
    )
    handle.apply({"x": np.ones(1)})
    (file,) = entries(tmp_path)
    data = file.read_bytes()
    assert b"probe" in data
    for secret in (b"sesame", b"abracadabra", b"bob"):
        assert not [file for file in file.parent.iterdir() if secret in file.read_bytes()]
    # So another address and another token find it, for a component that has a name and a version.
    other = kept(mock.handle("http://elsewhere:1", token="other"), _cache(tmp_path))
    n = len(mock.requests)
    assert other.apply({"x": np.ones(1)})["y"].tolist() == [4.0]
    assert [request.url.path for request in mock.requests[n:]] == ["/openapi.json"]


def _cache(path: Path) -> DirectoryCache:
    return DirectoryCache(path)


def _reply(request: Any) -> Any:
    import httpx
    import orjson

    return httpx.Response(200, content=document() if request.method == "GET" else orjson.dumps({"y": array([4.0])}))


# Damage


def test_any_damage_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tesseract_flow")
    component = Numbering(lambda n: {"y": np.arange(3.0), "n": 7})
    handle = kept(component, DirectoryCache(tmp_path))
    handle.apply(X)
    (file,) = entries(tmp_path)
    whole = file.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 7)]
    damaged += [whole[:n] + bytes([whole[n] ^ (1 << n % 8)]) + whole[n + 1 :] for n in range(len(whole))]
    damaged += [whole + b"\x00", whole * 2, b"", os.urandom(len(whole)), pickle.dumps({"y": 1})]
    for data in damaged:
        if says_the_same(data, whole):  # 7E-05 in place of 7e-05
            continue
        file.write_bytes(data)
        before = next(component.numbers)
        caplog.clear()
        answer = handle.apply(X)
        assert (answer["y"].tolist(), answer["n"]) == ([0.0, 1.0, 2.0], 7)
        assert next(component.numbers) == before + 2  # it was asked
        assert "is not used and removed" in caplog.text
        assert without_times(file.read_bytes()) == without_times(whole)


def says_the_same(data: bytes, text: bytes) -> bool:
    try:
        return parsed(data) == parsed(text)
    except ValueError:
        return False


def without_times(text: bytes) -> Any:
    node = parsed(text)
    return {name: node[name] for name in node if name not in ("asked", "checksum")}


def test_entry_under_the_name_of_another_question_is_a_miss(tmp_path: Path) -> None:
    """A digest finds the file, and the question in it decides."""
    cache, (zero, one) = filled(tmp_path, 2)
    shutil.copy(zero, one)
    assert kept(Numbering(lambda n: {"n": "new"}), cache).apply({"i": 1})["n"] == "new"
    assert kept(Numbering(), cache).apply({"i": 0})["n"] == 0


def test_damaged_file_is_removed_even_if_the_component_is_gone(tmp_path: Path) -> None:
    def gone(n: int) -> Any:
        raise ConnectionError("gone")

    cache, (file,) = filled(tmp_path)
    file.write_bytes(b"nonsense")
    with pytest.raises(ConnectionError):
        kept(Numbering(gone), cache).apply({"i": 0})
    assert not file.exists()


@pytest.mark.parametrize("what", ["a folder in the place of an entry", "a file in the place of the folder"])
def test_store_that_does_not_work_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    cache, (file,) = filled(tmp_path)
    if "entry" in what:
        file.unlink()
        (file / "inside").mkdir(parents=True)
    else:
        shutil.rmtree(tmp_path)
        tmp_path.write_text("not a folder")
    handle = kept(Numbering(), cache)
    assert [handle.apply({"i": 0})["n"] for _ in range(3)] == [0, 1, 2]
    assert caplog.text.count("this is said once") == 1
    assert cache.stats()["skipped"] == 3


def test_disk_that_is_full_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache, _ = filled(tmp_path, 0)
    assert kept(Numbering(), cache).apply(X)["n"] == 0
    assert list((tmp_path / FOLDER).iterdir()) == []


# Processes

_WRITER = """
import os, sys
import numpy as np
from tesseract_flow.client import DirectoryCache
from tests.client.keeping import Numbering, kept, square

if "hang" in sys.argv:
    def hang(descriptor):
        print("writing", flush=True)
        sys.stdin.read()
    os.fsync = hang
handle = kept(Numbering(lambda n: {"n": n, "y": np.full(1000, float(n))}), DirectoryCache(sys.argv[1]))
for i in range(20):
    answer = handle.apply({"i": i, "hang": "hang" in sys.argv})
    assert answer["y"].tolist() == [float(answer["n"])] * 1000
print(sorted(handle.cache.stats().items()), flush=True)
"""


def _writer(path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_share_a_folder_and_one_that_is_killed_leaves_no_harm(tmp_path: Path) -> None:
    processes = [_writer(tmp_path, "hang"), _writer(tmp_path), _writer(tmp_path)]
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
        killed, *others = processes
        assert killed.stdout is not None
        assert killed.stdout.readline() == "writing\n"
        killed.send_signal(signal.SIGKILL)
        for process in others:
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            assert "('entries', 20)" in said
    (aside,) = (tmp_path / FOLDER).glob(".*.tmp")
    assert len(entries(tmp_path)) == 20
    # What others have left is found here, and what was never finished is not.
    handle = kept(Numbering(), DirectoryCache(tmp_path))
    assert all(handle.apply({"i": i, "hang": False})["y"].shape == (1000,) for i in range(20))
    # It may belong to somebody who is still writing; after an hour it does not.
    cache = existing(tmp_path)
    cache.prune()
    assert aside.exists()
    os.utime(aside, (1000.0, 1000.0))
    cache.prune()
    assert list((tmp_path / FOLDER).iterdir()) == []


# Bounds


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    _, (file,) = filled(tmp_path / "one")
    n_bytes = file.stat().st_size
    cache, files = filled(tmp_path / "three", 3, max_bytes=3 * n_bytes + n_bytes // 2)
    handle = kept(Numbering(lambda n: {"n": 9}), cache)
    assert handle.apply({"i": 0})["n"] == 0  # used now
    handle.apply({"i": 3})
    assert [file.exists() for file in files] == [True, False, True]
    assert [handle.apply({"i": i})["n"] for i in (0, 2, 3)] == [0, 2, 9]
    stats = cache.stats()
    assert (stats["evicted"], stats["entries"]) == (1, 3)
    assert stats["bytes"] <= cache.max_bytes


def test_bound_holds_for_what_others_have_written(tmp_path: Path) -> None:
    _, files = filled(tmp_path, 20)
    n_bytes = sum(file.stat().st_size for file in files)
    cache = DirectoryCache(tmp_path, max_bytes=n_bytes // 2)
    kept(Numbering(), cache).apply({"i": 100})
    assert cache.stats()["bytes"] <= cache.max_bytes


def test_bound_holds_for_what_others_write_in_the_meantime(tmp_path: Path) -> None:
    _, (file,) = filled(tmp_path)
    cache = DirectoryCache(tmp_path, max_bytes=40 * file.stat().st_size)
    handle = kept(Numbering(), cache)
    handle.apply({"i": 1})
    for k in range(60):
        shutil.copy(file, file.with_name(f"{file.name.partition('.')[0]}.apply.{k:032x}.json"))
    for i in range(2, 9):
        handle.apply({"i": i})
    assert cache.stats()["bytes"] <= cache.max_bytes


def test_prune(tmp_path: Path) -> None:
    cache, files = filled(tmp_path, 5)
    sizes = [file.stat().st_size for file in files]
    assert cache.prune(unused_since=1002.0) == (2, sum(sizes[:2]))
    assert cache.prune(sum(sizes[2:])) == (0, 0)
    assert cache.prune(sum(sizes[2:]) - 1) == (1, sizes[2])
    assert entries(tmp_path) == sorted(files[3:])
    assert cache.prune() == (2, sum(sizes[3:]))
    assert kept(Numbering(lambda n: {"n": "new"}), cache).apply({"i": 4})["n"] == "new"


def test_foreign_files_stay(tmp_path: Path) -> None:
    cache, (file,) = filled(tmp_path)
    foreign = [tmp_path / "thesis.tex", cache.folder / "notes.txt", cache.folder / "a.json", cache.folder / ".x.tmp"]
    for path in foreign:
        path.write_text("mine")
        os.utime(path, (1000.0, 1000.0))
    link = cache.folder / ("a.apply." + "0" * 32 + ".json")
    link.symlink_to(foreign[0])
    assert cache.stats()["entries"] == 1
    cache.prune()
    assert not file.exists()
    assert all(path.read_text() == "mine" for path in [*foreign, link])


def test_inventory_of_nothing(tmp_path: Path) -> None:
    assert Inventory.of(tmp_path / "nowhere", time.time()) == Inventory([], {}, [], [])


# Values


def test_equal_paths_are_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = DirectoryCache("cache"), DirectoryCache(tmp_path / "x" / ".." / "cache")
    assert one == two == pickle.loads(pickle.dumps(one))
    assert one.traffic is two.traffic
    assert one != DirectoryCache("cache", max_bytes=1000)
    monkeypatch.chdir("/")
    assert one.path == tmp_path / "cache"


@pytest.mark.parametrize("path", ["http://cache:1", "s3://bucket/cache", " ", ""])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(OptionError, match="expected a path on this machine"):
        DirectoryCache(path)


def test_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="file, which is a file"):
        DirectoryCache(tmp_path / "file")


def test_existing(tmp_path: Path) -> None:
    filled(tmp_path / "cache")
    assert existing(tmp_path / "cache") == existing(tmp_path / "cache" / FOLDER) == DirectoryCache(tmp_path / "cache")
    with pytest.raises(OptionError, match="There is no folder"):
        existing(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="is no result cache"):
        existing(tmp_path)
    (tmp_path / "old" / "tesseract-flow-cache-v0").mkdir(parents=True)
    with pytest.raises(OptionError, match="has tesseract-flow-cache-v0, of another version"):
        existing(tmp_path / "old")


def test_a_served_component_is_bound_to_its_code(tmp_path: Path) -> None:
    from tesseract_flow.client.handles.source import build_of

    folder = tmp_path / "component"
    (folder / "_parts" / "__pycache__").mkdir(parents=True)
    (folder / "venv").mkdir()
    code, helper, mesh = folder / "tesseract_api.py", folder / "_parts" / "stress.py", folder / "mesh.dat"
    for path in (code, helper, mesh):
        path.write_text("1")
    seen = [build_of(folder)]
    for path in (code, helper, mesh):
        status = path.stat()
        path.write_text("2")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy may keep it
        seen.append(build_of(folder))
    assert len(set(seen)) == 4
    for name in ("_parts/__pycache__/x.pyc", "venv/pyvenv.cfg", "venv/x.py", ".hidden"):
        (folder / name).write_text("")
    (folder / ".hidden").unlink()
    for path in (code, mesh):
        os.utime(path, (50, 50))  # the same text
    assert build_of(folder) == seen[-1]
    os.mkfifo(folder / "pipe")  # whoever reads it waits for a writer
    assert build_of(folder) != seen[-1]


def test_handle_is_still_http(tmp_path: Path) -> None:
    handle = kept(HttpTesseract("http://solver:8000"), DirectoryCache(tmp_path))
    assert handle.url == "http://solver:8000"  # type: ignore[attr-defined]


@pytest.mark.parametrize("planted", ["pipe", "folder", "link", "huge"])
def test_what_is_no_file_is_a_miss(tmp_path: Path, planted: str) -> None:
    cache = DirectoryCache(tmp_path)
    handle = kept(square(), cache)
    handle.apply(X)
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    entry.unlink()
    if planted == "pipe":
        os.mkfifo(entry)  # whoever opens it waits for a writer
    elif planted == "folder":
        entry.mkdir()
    elif planted == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        entry.symlink_to(tmp_path / "elsewhere")
    else:
        with open(entry, "wb") as file:
            file.write(content)
            file.truncate(2**42)  # it takes no room on the disk, and would take all of the memory
    np.testing.assert_array_equal(handle.apply(X)["y"], X["x"] ** 2)
    np.testing.assert_array_equal(handle.apply(X)["y"], X["x"] ** 2)
