"""Stores: the same few verbs in a folder, in memory and in S3; and a journal in each."""

from __future__ import annotations

import os
import pathlib
import threading
import uuid
from collections.abc import Iterator

import jax.numpy as jnp
import pytest

from tesseract_flow.errors import JournalError, StorageError
from tesseract_flow.optimize import FileJournal, MaxSteps, Problem, optimize, read_contents
from tesseract_flow.optimize.checkpoint import Checkpoint
from tesseract_flow.storage import AbstractStore, FolderStore, UrlStore, is_url, local_folder, open_store, place_in
from tests.optimize.helpers import same_bits


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket in moto's server, a stand-in for S3."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    known = {name: os.environ.get(name) for name in ("AWS_ENDPOINT_URL", *_CREDENTIALS)}
    os.environ.update(AWS_ENDPOINT_URL=f"http://{host}:{port}", **_CREDENTIALS)
    client = boto3.client("s3")
    client.create_bucket(Bucket="runs")
    client.close()
    yield "s3://runs"
    for name, value in known.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "planted", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    name = uuid.uuid4().hex
    match request.param:
        case "folder":
            return str(tmp_path / "a" / name)
        case "file":
            return (tmp_path / "a b" / name).as_uri()
        case "memory":
            return f"memory://{name}/a"
        case _:
            return place_in(request.getfixturevalue("s3"), name, "a")


@pytest.fixture
def store(address: str) -> AbstractStore:
    return open_store(address)


def test_files_are_written_read_listed_moved_and_removed(store):
    assert store.names() == []
    with pytest.raises(FileNotFoundError):
        store.read("x")
    store.make()
    store.make()
    for data in (b"", b"one", bytes(range(256)) * 5000):
        store.write("x", data)
        assert store.read("x") == data
    store.write("y", b"2")
    assert store.names() == ["x", "y"]
    assert store.set_aside("x", "damaged") == "x.damaged"
    store.write("x", b"3")
    assert store.set_aside("x", "damaged") == "x.damaged-2"
    store.remove("y")
    store.remove("y")
    assert store.names() == ["x.damaged", "x.damaged-2"]
    with pytest.raises(FileNotFoundError):
        store.read("y")


def test_it_is_possessed_once_and_given_back(store):
    store.make()
    possession = store.possess()
    possession.check()
    if isinstance(store, FolderStore):
        with pytest.raises(StorageError, match=r"is in use by process \d+"):
            open_store(store.address).possess()
    possession.release()
    possession.release()
    again = store.possess()
    assert again.generation == (0 if isinstance(store, FolderStore) else 2)
    again.release()


def test_of_many_who_create_a_file_at_once_one_succeeds(s3):
    stores = [UrlStore(f"{s3}/{uuid.uuid4().hex}")]
    stores += [UrlStore(stores[0].url) for _ in range(7)]
    barrier, won = threading.Barrier(len(stores)), []

    def create(k: int) -> None:
        barrier.wait()
        try:
            stores[k].create("lease", str(k).encode())
        except FileExistsError:
            return
        won.append(k)

    threads = [threading.Thread(target=create, args=(k,)) for k in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and stores[0].read("lease") == str(won[0]).encode()


def bowl() -> Problem:
    return Problem({"x": jnp.array([1.0, -2.0])}, lambda design: ((design["x"] - 0.3) ** 2).sum())


@pytest.mark.slow
def test_a_run_goes_on_from_wherever_its_journal_is(address):
    undisturbed = optimize(bowl(), stop=MaxSteps(9))
    for n in (3, 6, 9):
        resumed = optimize(bowl(), stop=MaxSteps(n), journal=address)
    assert same_bits(undisturbed, resumed)
    contents = read_contents(address)
    assert contents.step == 9 and [record["step"] for record in contents.history] == list(range(10))
    assert contents.best["x"].tolist() == resumed.design["x"].tolist()
    store = open_store(address)
    assert len([name for name in store.names() if name.endswith(".ckpt")]) == 3
    assert store.read("history.jsonl").count(b"\n") == 10
    started = optimize(bowl(), stop=MaxSteps(0), start_from=address)
    assert started.design["x"].tolist() == resumed.design["x"].tolist()
    assert all(b"planted" not in store.read(name) for name in store.names() if name != "lock")


def test_damage_costs_a_step_there_too(address):
    optimize(bowl(), stop=MaxSteps(5), journal=address)
    store = open_store(address)
    newest = max(name for name in store.names() if name.endswith(".ckpt"))
    store.write(newest, store.read(newest)[:-1])
    for name in ("history.jsonl", "identity.json"):
        store.write(name, b"")
    assert read_contents(address).step == 4
    resumed = optimize(bowl(), stop=MaxSteps(5), journal=address)
    assert resumed.steps == 5 and any(f"{newest} was damaged" in note for note in resumed.notes)


def test_a_run_that_lost_its_lease_writes_no_more():
    store = UrlStore(f"memory://{uuid.uuid4().hex}")
    journal = FileJournal(store)
    journal.open({"problem": "beam"})
    journal.save(Checkpoint(0, {}), {"step": 0})
    before = store.names()
    store.create("lease-00000002.json", b"{}")
    with pytest.raises(StorageError):
        journal._possession.renew()  # type: ignore[union-attr]
    with pytest.raises(JournalError, match="lost its lease"):
        journal.save(Checkpoint(1, {}), {"step": 1})
    journal.close()
    assert [name for name in store.names() if "lease" not in name] == [name for name in before if "lease" not in name]


def test_what_a_late_writer_leaves_is_not_taken_for_its_successors():
    """It passed the check, slept, and writes when another run possesses the journal."""
    store = UrlStore(f"memory://{uuid.uuid4().hex}")
    late, successor = FileJournal(store), FileJournal(store)
    late.open({"problem": "beam"})
    late.save(Checkpoint(0, {}), {"step": 0})
    late.close()
    successor.open({"problem": "beam"})
    successor.save(Checkpoint(1, {}), {"step": 1, "who": "successor"})
    store.write("step-00000001-0001.ckpt", store.read("step-00000001-0002.ckpt")[:-1])
    store.write("step-00000007-0001.ckpt", b"late")
    successor.close()
    assert read_contents(store).history[-1] == {"step": 1, "who": "successor"}


def test_addresses():
    assert is_url("s3://bucket/x") and is_url("memory://x")
    assert (
        not is_url("runs/beam") and not is_url("file:///x") and not is_url("C:\\runs") and not is_url(pathlib.Path("x"))
    )
    assert place_in("s3://bucket/runs/", "a", "journal") == "s3://bucket/runs/a/journal"
    assert place_in("runs", "a") == os.path.join("runs", "a")
    assert UrlStore("memory://bob:planted@x").address == "memory://***@x"


@pytest.mark.parametrize("address", ["nosuch://bucket/x", "s3a-nothing://x"])
def test_an_address_of_no_known_kind_is_refused(address):
    with pytest.raises(JournalError, match="cannot be opened"):
        FileJournal(address)


def test_results_are_sent_where_the_address_is(tmp_path):
    for address in (str(tmp_path / "out"), f"memory://{uuid.uuid4().hex}"):
        with local_folder(address) as folder:
            folder.mkdir(exist_ok=True)
            (folder / "result.json").write_text("{}")
        assert open_store(address).read("result.json") == b"{}"
