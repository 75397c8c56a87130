"""The journal: what was saved comes back, whatever happens in between."""

from __future__ import annotations

import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tesseract_flow.errors import JournalError, OtherRun
from tesseract_flow.optimize import Checkpoint, FileJournal
from tesseract_flow.optimize import history as history_module
from tesseract_flow.optimize.checkpoint import decode_checkpoint, encode_checkpoint
from tesseract_flow.optimize.contents import read_contents
from tesseract_flow.optimize.history import History
from tesseract_flow.optimize.journal import as_journal

FINGERPRINT = {"problem": "beam", "driver": {"name": "adam", "learning_rate": 0.01}}
MOMENTS = ["history", "history sync", "aside", "aside half", "rename", "sync folder", "prune"]


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"u": np.arange(5.0) + step, "count": np.asarray(step, np.int32)})


def record(step: int) -> dict:
    return {"step": step, "value": 1 / (step + 3)}


def write(folder: pathlib.Path, steps, *, identity=FINGERPRINT, **kwargs) -> None:
    journal = FileJournal(folder, **kwargs)
    journal.open(identity)
    try:
        for step in steps:
            journal.save(checkpoint(step), record(step))
    finally:
        journal.close()


def read(folder: pathlib.Path):
    journal = FileJournal(folder)
    try:
        return journal.open(FINGERPRINT)
    finally:
        journal.close()


def files(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


dtypes = st.sampled_from([np.float64, np.float32, np.int32, np.bool_, np.uint8, jnp.bfloat16, np.float16])


@given(
    st.dictionaries(st.text(max_size=8), dtypes.flatmap(lambda d: st.tuples(st.just(d), hnp.array_shapes(min_dims=0))))
)
@pytest.mark.slow
def test_checkpoints_come_back_bit_for_bit(spec):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, (dtype, shape) in spec.items()}
    history = History(record(step) for step in range(8))
    found = decode_checkpoint(encode_checkpoint(Checkpoint(7, arrays, {"x": np.ones(3)}), "whose", history.end))
    again = found.checkpoint
    assert (again.step, found.run, found.link) == (7, "whose", None)
    assert found.records == [record(step) for step in range(8)]
    assert list(again.arrays) == list(arrays) and again.design["x"].tolist() == [1.0, 1.0, 1.0]
    for name, array in arrays.items():
        received = again.arrays[name]
        assert (received.dtype, received.shape, received.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_nan_payloads_and_signed_zeros_survive():
    odd = np.frombuffer(b"\x01\x00\x00\x00\x00\x00\xf8\x7f" + b"\x00" * 7 + b"\x80", np.float64)
    again = decode_checkpoint(encode_checkpoint(Checkpoint(0, {"odd": odd}))).checkpoint
    assert again.arrays["odd"].tobytes() == odd.tobytes()


def test_the_last_step_comes_back_with_its_history(tmp_path):
    assert read(tmp_path / "runs" / "beam") is None
    write(tmp_path / "runs" / "beam", range(6))
    resumed = read(tmp_path / "runs" / "beam")
    assert resumed.checkpoint.step == 5
    assert resumed.checkpoint.arrays["u"].tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert resumed.history == [record(step) for step in range(6)]
    assert resumed.notes == ()


def test_only_the_last_few_are_kept(tmp_path):
    write(tmp_path, range(10), keep=3)
    assert [name for name in files(tmp_path) if name.startswith("step")] == [f"step-0000000{k}.ckpt" for k in (7, 8, 9)]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("crash_at", [0, 1, 4])
def test_a_crash_at_any_moment_of_a_write_loses_at_most_the_step_being_written(tmp_path, moment, crash_at):
    saving = []

    def pull_the_plug(at):
        if at == moment and saving and saving[-1] == crash_at:
            raise KeyboardInterrupt

    journal = FileJournal(tmp_path, at=pull_the_plug)
    journal.open(FINGERPRINT)

    def save_all():
        for step in range(6):
            saving.append(step)
            journal.save(checkpoint(step), record(step))

    with pytest.raises(KeyboardInterrupt):
        save_all()
    journal.close()

    resumed = read(tmp_path)
    last = -1 if resumed is None else resumed.checkpoint.step
    assert last == (crash_at if moment in ("sync folder", "prune") else crash_at - 1)
    # Going on from there gives the folder that no crash would have given.
    write(tmp_path, range(last + 1, 6))
    undisturbed = tmp_path.with_name(tmp_path.name + "-undisturbed")
    write(undisturbed, range(6))
    kept = [name for name in files(undisturbed) if name != "lock"]
    assert [name for name in files(tmp_path) if name != "lock"] == kept
    assert all((tmp_path / name).read_bytes() == (undisturbed / name).read_bytes() for name in kept)


@given(st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_newest_checkpoint_costs_one_step(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("journal")
    write(folder, range(4))
    newest = folder / "step-00000003.ckpt"
    intact = newest.read_bytes()
    position = data.draw(st.integers(0, len(intact) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "empty"]))
    damaged = bytearray(intact)
    damaged[position] ^= data.draw(st.integers(1, 255))
    newest.write_bytes({"flip": bytes(damaged), "cut": intact[:position], "empty": b""}[how])
    resumed = read(folder)
    assert resumed.checkpoint.step == 2
    assert resumed.history == [record(step) for step in range(3)]
    assert "step-00000003.ckpt was damaged" in resumed.notes[0]
    assert (folder / "step-00000003.ckpt.damaged").exists()
    write(folder, [3])
    assert newest.read_bytes() == intact and read(folder).notes == ()


@given(st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_to_one_other_file_costs_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("journal")
    write(folder, range(4))
    intact = {name: (folder / name).read_bytes() for name in files(folder)}
    name = data.draw(st.sampled_from(["history.jsonl", "identity.json", "identity-copy.json"]))
    damage(folder / name, data)
    assert read_contents(folder).history == tuple(record(step) for step in range(4))
    resumed = read(folder)
    assert resumed.checkpoint.step == 3
    assert resumed.history == [record(step) for step in range(4)]
    write(folder, [4])
    assert [json.loads(line)["step"] for line in (folder / "history.jsonl").read_text().splitlines()] == list(range(5))
    assert intact["step-00000003.ckpt"] == (folder / "step-00000003.ckpt").read_bytes()


def damage(path: pathlib.Path, data) -> None:
    intact = path.read_bytes()
    position = data.draw(st.integers(0, len(intact) - 1))
    flipped = bytearray(intact)
    flipped[position] ^= data.draw(st.integers(1, 255))
    match data.draw(st.sampled_from(["flip", "cut", "empty", "gone", "folder", "pipe", "link"])):
        case "flip":
            path.write_bytes(flipped)
        case "cut":
            path.write_bytes(intact[:position])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "link":
            path.unlink()
            path.symlink_to("/dev/zero")


@pytest.mark.parametrize("what", ["folder", "full folder", "pipe", "link", "text", "empty"])
@pytest.mark.parametrize("step", [3, 7])
def test_what_only_looks_like_a_checkpoint_is_set_aside(tmp_path, what, step):
    write(tmp_path, range(4))
    path = tmp_path / f"step-{step:08d}.ckpt"
    path.unlink(missing_ok=True)
    match what:
        case "folder" | "full folder":
            path.mkdir()
            if what == "full folder":
                (path / "notes.txt").write_text("mine")
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(tmp_path / "step-00000002.ckpt")
        case "text" | "empty":
            path.write_text("mine" * (what == "text"))
    assert read_contents(tmp_path).step == (2 if step == 3 else 3)
    resumed = read(tmp_path)
    assert resumed.checkpoint.step == (2 if step == 3 else 3)
    assert f"{path.name} was damaged" in resumed.notes[0]
    write(tmp_path, range(resumed.checkpoint.step + 1, 9))
    assert read_contents(tmp_path).step == 8 and read(tmp_path).notes == ()


def test_a_checkpoint_of_another_run_is_set_aside(tmp_path):
    write(tmp_path / "a", range(3))
    write(tmp_path / "b", range(6), identity={"problem": "wing"})
    (tmp_path / "a" / "step-00000005.ckpt").write_bytes((tmp_path / "b" / "step-00000005.ckpt").read_bytes())
    assert read_contents(tmp_path / "a").step == 2
    resumed = read(tmp_path / "a")
    assert resumed.checkpoint.step == 2
    assert resumed.notes[0].startswith("step-00000005.ckpt belongs to another run; it was set aside as ")


def test_a_journal_that_finished_nothing_belongs_to_nobody_yet(tmp_path):
    assert read(tmp_path) is None
    write(tmp_path, range(2), identity={"problem": "wing"})
    assert read_contents(tmp_path).identity == {"problem": "wing"}


def test_lost_checkpoints_are_told_and_nothing_is_started_over_their_history(tmp_path):
    write(tmp_path, range(5))
    for path in tmp_path.glob("*.ckpt"):
        path.unlink()
    kept = (tmp_path / "history.jsonl").read_bytes()
    with pytest.raises(JournalError, match="history of 5 finished steps: their checkpoints are gone"):
        read(tmp_path)
    assert (tmp_path / "history.jsonl").read_bytes() == kept
    contents = read_contents(tmp_path)
    assert list(contents.history) == [record(step) for step in range(5)]
    assert "the checkpoints of 5 finished steps are gone" in contents.notes[0]


@pytest.mark.parametrize("lines", [b'{"step": 0, "val', b'{"step": 0}\n', b'{"step": 0}\n{"step": 0}\n'])
def test_a_death_before_the_first_checkpoint_starts_again(tmp_path, lines):
    write(tmp_path, [])
    (tmp_path / "history.jsonl").write_bytes(lines)
    assert read_contents(tmp_path).notes == ()
    assert read(tmp_path) is None
    assert not (tmp_path / "history.jsonl").exists()


def test_files_are_the_owners_alone(tmp_path):
    folder = tmp_path / "runs" / "beam"
    write(folder, range(5))
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o600"}
    assert {oct(path.stat().st_mode & 0o777) for path in (folder, folder.parent)} == {"0o700"}


def test_another_problem_is_refused_with_a_difference_to_read(tmp_path):
    write(tmp_path, range(2))
    other = {"problem": "beam", "driver": {"name": "adam", "learning_rate": 0.02, "b1": 0.8}}
    with pytest.raises(JournalError) as refusal:
        FileJournal(tmp_path).open(other)
    message = str(refusal.value)
    assert "\n  driver.learning_rate: 0.01 -> 0.02\n" in message
    assert "\n  driver.b1: (absent) -> 0.8\n" in message
    assert "problem" not in message.split("What changed")[1].split("Undo")[0]
    assert "another key" in message and "remove" in message
    # The refusal gave the lock back.
    assert read(tmp_path).checkpoint.step == 1


def test_two_runs_at_once_are_refused(tmp_path):
    first = FileJournal(tmp_path)
    first.open(FINGERPRINT)
    with pytest.raises(JournalError, match=r"(?s)is in use by process .*Wait for that run"):
        FileJournal(tmp_path).open(FINGERPRINT)
    with pytest.raises(JournalError, match="already open"):
        first.open(FINGERPRINT)
    first.close()
    first.close()
    assert read(tmp_path) is None


def test_a_checkpoint_says_whose_it_is_even_if_the_files_that_do_are_gone(tmp_path):
    write(tmp_path, range(2))
    for name in ("identity.json", "identity-copy.json"):
        (tmp_path / name).unlink()
    with pytest.raises(JournalError, match=r"(?s)nobody can tell whose they are.*accept_changes=True"):
        FileJournal(tmp_path).open({"problem": "wing"})
    assert read(tmp_path).changes == ()
    journal = FileJournal(tmp_path)
    assert journal.open({"problem": "wing"}, accept_changes=True).changes == (
        "whose the checkpoints are, which the journal no longer says",
    )
    journal.close()


def test_accepted_changes_are_known_from_then_on(tmp_path):
    other = {"problem": "beam", "driver": {"name": "adam", "learning_rate": 0.02}}
    write(tmp_path, range(2))
    journal = FileJournal(tmp_path)
    resumed = journal.open(other, accept_changes=True)
    assert resumed.changes == ("driver.learning_rate: 0.01 -> 0.02",)
    journal.close()
    # Not confirmed, so nothing was accepted.
    with pytest.raises(OtherRun) as refusal:
        FileJournal(tmp_path).open(other)
    assert refusal.value.changes == resumed.changes
    journal.open(other, accept_changes=True)
    journal.confirm()
    journal.close()
    # The checkpoint is still the old problem's.
    assert journal.open(other).changes == resumed.changes
    journal.save(checkpoint(2), record(2))
    journal.close()
    assert journal.open(other).changes == ()
    journal.close()
    contents = read_contents(tmp_path)
    assert contents.identity == other and contents.accepted == ((1, "driver.learning_rate: 0.01 -> 0.02"),)
    with pytest.raises(OtherRun, match=r"learning_rate: 0.02 -> 0.01"):
        read(tmp_path)


def test_another_version_is_not_taken_for_damage(tmp_path):
    write(tmp_path, range(2))
    newest = tmp_path / "step-00000001.ckpt"
    newest.write_bytes(newest.read_bytes().replace(b'"version": 3', b'"version": 9', 1))
    with pytest.raises(JournalError, match="format version 9"):
        read(tmp_path)


def test_a_renamed_checkpoint_is_set_aside(tmp_path):
    write(tmp_path, range(3))
    (tmp_path / "step-00000001.ckpt").rename(tmp_path / "step-00000005.ckpt")
    resumed = read(tmp_path)
    assert resumed.checkpoint.step == 2
    assert "says that it is step 1" in resumed.notes[0]


def test_a_folder_that_cannot_be_used_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be opened"):
        FileJournal(tmp_path / "file" / "journal").open(FINGERPRINT)
    with pytest.raises(JournalError, match="at least one"):
        FileJournal(tmp_path, keep=0)
    with pytest.raises(JournalError, match="not open"):
        FileJournal(tmp_path).save(checkpoint(0), record(0))


def test_a_full_disk_is_a_journal_error_and_loses_nothing(tmp_path):
    write(tmp_path, range(2))

    def full(moment):
        if moment == "aside half":
            raise OSError(28, "No space left on device")

    journal = FileJournal(tmp_path, at=full)
    journal.open(FINGERPRINT)
    with pytest.raises(JournalError, match=r"(?s)cannot be written.*No space left.*finished before are safe"):
        journal.save(checkpoint(2), record(2))
    journal.close()
    assert read(tmp_path).checkpoint.step == 1


def test_nothing_in_a_journal_is_pickle(tmp_path):
    write(tmp_path, range(3))
    for path in tmp_path.glob("step-*.ckpt"):
        header, _, payload = path.read_bytes().partition(b"\n")
        header = json.loads(header)
        assert [name for name, _, _ in header["arrays"]] == ["u", "count"]
        assert len(payload) == 5 * 8 + 4 + header["history"]
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [
        record(step) for step in range(3)
    ]


def test_a_path_stands_for_the_journal_in_it(tmp_path):
    made = as_journal(tmp_path / "x")
    assert isinstance(made, FileJournal) and made.address == str(tmp_path / "x")
    assert as_journal(made) is made


# --- long histories ---------------------------------------------------------------------------------------------------


def grown(folder: pathlib.Path, n_steps: int) -> FileJournal:
    """A journal, closed, of so many steps."""
    journal = FileJournal(folder)
    journal.open(FINGERPRINT)
    for step in range(n_steps):
        journal.save(checkpoint(step), record(step))
    journal.close()
    return journal


@pytest.fixture
def short_parts(monkeypatch):
    """Parts of four records, for tests."""
    monkeypatch.setattr(history_module, "PART_STEPS", 4)


def test_what_a_step_adds_does_not_grow(tmp_path):
    grown(tmp_path, 2 * history_module.PART_STEPS)
    parts = sorted(tmp_path.glob("history-*.part"))
    assert [path.name for path in parts] == [f"history-{256 * k - 1:08d}.part" for k in (1, 2)]
    sizes = [path.stat().st_size for path in parts]
    assert max(sizes) < 1.2 * min(sizes)
    assert max(path.stat().st_size for path in tmp_path.glob("*.ckpt")) < max(sizes) + 3000
    assert len(read(tmp_path).history) == 2 * history_module.PART_STEPS


@pytest.mark.parametrize("n_steps", range(3, 14))
@pytest.mark.parametrize("lost", ["nothing", "lines", "last part", "first part", "bytes of a part"])
def test_a_history_in_parts_comes_back(short_parts, tmp_path, n_steps, lost):
    grown(tmp_path, n_steps)
    parts = sorted(tmp_path.glob("history-*.part"))
    assert len(parts) == n_steps // 4
    if lost == "lines":
        (tmp_path / "history.jsonl").unlink()
    elif parts and lost == "bytes of a part":
        content = bytearray(parts[0].read_bytes())
        content[len(content) // 2] ^= 4
        parts[0].write_bytes(content)
    elif parts and "part" in lost:
        parts[-1 if lost == "last part" else 0].unlink()
    expected = [record(step) for step in range(n_steps)]
    assert list(read_contents(tmp_path).history) == expected
    journal = FileJournal(tmp_path)
    resumed = journal.open(FINGERPRINT)
    assert resumed is not None
    assert list(resumed.history) == expected and resumed.notes == ()
    for step in range(n_steps, n_steps + 6):
        journal.save(checkpoint(step), record(step))
    journal.close()
    # Whole again: either of the two is enough.
    (tmp_path / "history.jsonl").unlink()
    assert list(read_contents(tmp_path).history) == [record(step) for step in range(n_steps + 6)]


def test_a_history_that_is_nowhere_whole_is_refused(short_parts, tmp_path):
    grown(tmp_path, 9)
    (tmp_path / "history-00000003.part").unlink()
    lines = tmp_path / "history.jsonl"
    lines.write_bytes(lines.read_bytes().replace(b'"step": 2', b'"step": 7'))
    with pytest.raises(JournalError, match=r"up to step 7 is whole neither in history-00000007.part nor in history"):
        read(tmp_path)


def test_an_interrupted_run_leaves_the_same_files(short_parts, tmp_path):
    grown(tmp_path / "once", 11)
    for n_steps in (3, 4, 7, 11):
        journal = FileJournal(tmp_path / "often")
        resumed = journal.open(FINGERPRINT)
        for step in range(0 if resumed is None else len(resumed.history), n_steps):
            journal.save(checkpoint(step), record(step))
        journal.close()
    for name in files(tmp_path / "once"):
        if name != "lock":
            assert (tmp_path / "often" / name).read_bytes() == (tmp_path / "once" / name).read_bytes(), name


def test_a_fresh_start_leaves_no_part_behind(short_parts, tmp_path):
    grown(tmp_path, 6)
    for path in tmp_path.glob("step-*"):
        path.unlink()
    (tmp_path / "history.jsonl").unlink()
    assert read(tmp_path) is None
    assert not list(tmp_path.glob("history-*"))
