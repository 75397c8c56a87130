"""Folders that end with their owner: nobody else enters them, and the dead leave none behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

from tesseract_flow.client.handles.private_folder import PrivateFolder, has_room, quickest

ROOT = Path(__file__).resolve().parents[3]


def test_for_its_owner_only(tmp_path):
    folder = PrivateFolder(tmp_path)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    (folder.path / "run" / "logs").mkdir(parents=True)
    folder.remove()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_those_of_the_living_stay(tmp_path):
    first = PrivateFolder(tmp_path)
    second = PrivateFolder(tmp_path)
    assert {first.path, second.path} == set(tmp_path.iterdir())
    first.remove()
    second.remove()


def test_those_of_the_dead_go(tmp_path):
    program = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from tesseract_flow.client.handles.private_folder import PrivateFolder
        folder = PrivateFolder(Path({str(tmp_path)!r}))
        (folder.path / "array.bin").touch()
        print(flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            child.stdout.readline()
        finally:
            child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert len(list(tmp_path.iterdir())) == 1
    folder = PrivateFolder(tmp_path)
    assert list(tmp_path.iterdir()) == [folder.path]
    folder.remove()


def test_what_is_not_ours_stays(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "tesseract-flow-private-link").symlink_to(tmp_path / "secret")
    (tmp_path / "other").mkdir()
    PrivateFolder(tmp_path).remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "secret", "tesseract-flow-private-link"]


def test_a_forked_child_removes_nothing(tmp_path, monkeypatch):
    folder = PrivateFolder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        folder.remove()
    assert folder.path.is_dir()
    folder.remove()
    assert not folder.path.exists()


def test_room(tmp_path):
    assert not has_room(tmp_path / "nowhere")


def test_where_files_are_quicker_is_tried_out(tmp_path, monkeypatch):
    seconds = {"memory": 2.0, "disk": 1.0, "slow": 1.9}
    places = {name: tmp_path / name for name in seconds}
    monkeypatch.setattr(
        "tesseract_flow.client.handles.private_folder._trial", lambda parent, content: seconds[parent.name]
    )
    assert quickest(places["memory"], places["disk"]) == places["disk"]
    assert quickest(places["memory"], places["slow"]) == places["memory"]  # not worth it
    monkeypatch.undo()
    assert quickest(tmp_path, tmp_path / "nowhere") == tmp_path
    assert list(tmp_path.iterdir()) == []
    assert quickest(tmp_path, tmp_path) == tmp_path
