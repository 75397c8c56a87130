"""An archive brings every answer to another machine, or is refused as a whole."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tesseract_flow.cli import main
from tesseract_flow.client import DirectoryCache, HttpTesseract
from tesseract_flow.client.caches.archive import MANIFEST, bring_in, verified
from tesseract_flow.errors import StorageError
from tests.client.keeping import kept, square

LONG = {"x": np.linspace(0.0, 1.0, 1000)}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    handle = kept(square(), DirectoryCache(tmp_path / "cache", mode="record"))
    handle.apply(LONG)
    handle.apply({"x": np.ones(3)})
    assert main(["cache", "export", str(tmp_path / "cache"), str(tmp_path / "answers.zip")]) == 0
    return tmp_path / "answers.zip"


def test_there_and_back(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (archive, tmp_path / "cache"):
        assert main(["cache", "verify", str(source)]) == 0
        said = capsys.readouterr().out
        assert "2 answers, all as they were written" in said
        assert "square 1.0" in said
        assert "from FunctionTesseract(square)" in said
    assert main(["cache", "import", str(archive), str(tmp_path / "elsewhere")]) == 0
    gone = HttpTesseract("http://solver.invalid:8000", label="square")
    answer = kept(gone, DirectoryCache(tmp_path / "elsewhere", mode="replay")).apply(LONG)
    assert np.array_equal(answer["y"], LONG["x"] ** 2)
    assert bring_in(archive, DirectoryCache(tmp_path / "elsewhere")) == (0, 2)
    assert main(["cache", "export", str(tmp_path / "cache"), str(archive)]) == 1  # it is there already


def test_what_is_damaged_is_written_anew(archive: Path, tmp_path: Path) -> None:
    """It was "there already", and stayed damaged."""
    cache = DirectoryCache(tmp_path / "cache")
    for pattern in ("*.json", "*.arrays"):
        file = next(path for path in sorted(cache.folder.glob(pattern)) if ".component." not in path.name)
        file.write_bytes(file.read_bytes()[:-20])
        assert bring_in(archive, cache)[0] == 1
        assert main(["cache", "verify", str(tmp_path / "cache")]) == 0


def changed(archive: Path, **files: bytes | None) -> None:
    other = archive.with_suffix(".other")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(other, "w") as new:
        content = {name: old.read(name) for name in old.namelist()}
        for name, data in files.items():
            found = next((known for known in content if known.endswith(name)), name)
            content.pop(found, None)
            if data is not None:
                content[found] = data
        for name, data in content.items():
            new.writestr(name, data)
    shutil.move(other, archive)


@pytest.mark.parametrize(
    "files",
    [
        {"../../escape.json": b"{}"},
        {"/etc/passwd": b""},
        {"notes.txt": b""},
        {".arrays": b"\x00" * 16000},
        {".arrays": None},
        {".component.json": b"{}"},
        {".component.json": None},
        {MANIFEST: b"{}"},
        {MANIFEST: None},
        {"square.apply." + "0" * 32 + ".json": b"{}"},
    ],
    ids=str,
)
def test_whatever_was_changed_all_is_refused(archive: Path, tmp_path: Path, files: dict[str, bytes | None]) -> None:
    changed(archive, **files)
    with pytest.raises(StorageError, match="Nothing of it is used"):
        bring_in(archive, DirectoryCache(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


def test_too_much_and_no_archive(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="more than 1000 bytes"):
        verified(archive, max_bytes=1000)
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(StorageError, match="cannot be believed"):
        verified(tmp_path / "text")
