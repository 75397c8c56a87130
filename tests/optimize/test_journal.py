"""The journal: what was saved comes back, whatever happens in between."""

from __future__ import annotations

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tesseract_flow.errors import JournalError
from tesseract_flow.optimize import Checkpoint, FileJournal
from tesseract_flow.optimize.journal import as_journal, decode_checkpoint, encode_checkpoint

FINGERPRINT = {"problem": "beam", "driver": {"name": "adam", "learning_rate": 0.01}}
MOMENTS = ["history", "history sync", "aside", "aside half", "rename", "sync folder", "prune"]


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"u": np.arange(5.0) + step, "count": np.asarray(step, np.int32)})


def record(step: int) -> dict:
    return {"step": step, "value": 1 / (step + 3)}


def write(folder: pathlib.Path, steps, **kwargs) -> None:
    journal = FileJournal(folder, **kwargs)
    journal.open(FINGERPRINT)
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
def test_checkpoints_come_back_bit_for_bit(spec):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, (dtype, shape) in spec.items()}
    again, length, digest = decode_checkpoint(encode_checkpoint(Checkpoint(7, arrays), 12, "digest"))
    assert (again.step, length, digest) == (7, 12, "digest")
    assert list(again.arrays) == list(arrays)
    for name, array in arrays.items():
        received = again.arrays[name]
        assert (received.dtype, received.shape, received.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_nan_payloads_and_signed_zeros_survive():
    odd = np.frombuffer(b"\x01\x00\x00\x00\x00\x00\xf8\x7f" + b"\x00" * 7 + b"\x80", np.float64)
    again, _, _ = decode_checkpoint(encode_checkpoint(Checkpoint(0, {"odd": odd}), 0, ""))
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


def test_a_damaged_history_is_noticed(tmp_path):
    write(tmp_path, range(4))
    history = tmp_path / "history.jsonl"
    lines = history.read_bytes().splitlines(keepends=True)
    history.write_bytes(b"".join(lines[:3]) + lines[3].replace(b"0.", b"1."))
    assert read(tmp_path).checkpoint.step == 2
    history.write_bytes(lines[0].replace(b"0.", b"1.") + b"".join(lines[1:3]))
    before = files(tmp_path)
    with pytest.raises(JournalError, match=r"(?s)no intact checkpoint.*Restore the folder from a backup"):
        read(tmp_path)
    # Nothing was touched, so that restoring the one bad file is enough.
    assert files(tmp_path) == before
    history.write_bytes(b"".join(lines[:3]))
    assert read(tmp_path).checkpoint.step == 2


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


def test_checkpoints_without_their_fingerprint_belong_to_nobody(tmp_path):
    write(tmp_path, range(2))
    (tmp_path / "fingerprint.json").unlink()
    with pytest.raises(JournalError, match="no fingerprint"):
        read(tmp_path)
    (tmp_path / "fingerprint.json").write_text("{")
    with pytest.raises(JournalError, match=r"fingerprint.json is damaged"):
        read(tmp_path)


def test_another_version_is_not_taken_for_damage(tmp_path):
    write(tmp_path, range(2))
    newest = tmp_path / "step-00000001.ckpt"
    newest.write_bytes(newest.read_bytes().replace(b'"version": 1', b'"version": 9', 1))
    with pytest.raises(JournalError, match="format version 9"):
        read(tmp_path)


def test_a_renamed_checkpoint_is_refused(tmp_path):
    write(tmp_path, range(2))
    (tmp_path / "step-00000001.ckpt").rename(tmp_path / "step-00000005.ckpt")
    with pytest.raises(JournalError, match="says that it is step 1"):
        read(tmp_path)


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
    with pytest.raises(JournalError, match=r"(?s)cannot be written.*No space left.*already finished are safe"):
        journal.save(checkpoint(2), record(2))
    journal.close()
    assert read(tmp_path).checkpoint.step == 1


def test_nothing_in_a_journal_is_pickle(tmp_path):
    write(tmp_path, range(3))
    for path in tmp_path.glob("step-*.ckpt"):
        header, _, payload = path.read_bytes().partition(b"\n")
        arrays = json.loads(header)["arrays"]
        assert [name for name, _, _ in arrays] == ["u", "count"]
        assert len(payload) == 5 * 8 + 4
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [
        record(step) for step in range(3)
    ]


def test_a_path_stands_for_the_journal_in_it(tmp_path):
    made = as_journal(tmp_path / "x")
    assert isinstance(made, FileJournal) and made.directory == tmp_path / "x"
    assert as_journal(made) is made
