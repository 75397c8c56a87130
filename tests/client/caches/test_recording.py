"""Recordings: everything that was asked, replayed to the bit by nobody; what is new, stale or damaged says so."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tesseract_flow as tf
from tesseract_flow.client import DirectoryCache, HttpTesseract, count_requests, open_tesseract
from tesseract_flow.client.caches.components import Component
from tesseract_flow.client.caches.directory import FOLDER
from tesseract_flow.errors import ComponentFailed, NotRecorded, OptionError, StaleRecording, StorageError
from tesseract_flow.testing import FunctionTesseract
from tests.client.keeping import Numbering, kept, square, version_of
from tests.helpers import Faults, Watched

X = {"x": np.array([1.0, 2.0, 3.0])}
LONG = {"x": np.linspace(0.0, 1.0, 1000)}


def recording(path: Path, **options: Any) -> DirectoryCache:
    return DirectoryCache(path, mode="record", **options)


def replay(path: Path) -> DirectoryCache:
    return DirectoryCache(path, mode="replay")


def gone(name: str = "square") -> HttpTesseract:
    """A handle whose server does not exist."""
    return HttpTesseract("http://solver.invalid:8000", label=name)


def ask(handle: Any, inputs: Any) -> list[Any]:
    def loss(x: Any) -> Any:
        return jnp.sum(tf.apply_tesseract(handle, {"x": x})["y"] ** 2)

    x = jnp.asarray(inputs["x"])
    return [*jax.value_and_grad(loss)(x), jax.jvp(loss, (x,), (x,))[1], jax.jit(jax.grad(loss))(x)]


@pytest.mark.parametrize("inputs", [X, LONG], ids=["short", "long"])
def test_a_handle_whose_server_does_not_exist_answers_to_the_bit(tmp_path: Path, inputs: Any) -> None:
    component = square()
    ask(component, inputs)  # what this process knows of it already is recorded all the same
    with count_requests() as sent:
        then = ask(kept(component, recording(tmp_path)), inputs)
    assert sent["square.abstract_eval"] >= 1
    with count_requests() as answered:
        now = ask(kept(gone(), replay(tmp_path)), inputs)
    assert [np.asarray(a).tobytes() for a in now] == [np.asarray(a).tobytes() for a in then]
    assert answered == sent


def test_everything_is_asked_again_while_it_is_recorded(tmp_path: Path) -> None:
    handle = kept(Numbering(), recording(tmp_path))
    assert [handle.apply({"i": 0})["n"] for _ in range(3)] == [0, 1, 2]
    assert kept(Numbering(), replay(tmp_path)).apply({"i": 0})["n"] == 2  # one answer to a question
    assert kept(Numbering(), DirectoryCache(tmp_path)).apply({"i": 0})["n"] == 2


def test_equal_calls_at_once_count_alike_without_a_cache_while_recorded_and_replayed(tmp_path: Path) -> None:
    """A limit of requests ends all three runs at the same step."""
    both = threading.Barrier(2, timeout=60.0)  # each waits until the other has been sent, too

    def before(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            both.wait()

    def histories(handle: Any) -> list[Any]:
        def value(x: Any) -> Any:
            same = x[::-1][::-1] + 0.0 * x  # which nobody can know before it is computed
            return sum(tf.apply_tesseract(handle, {"x": one})["y"].sum() for one in (x, same))

        result = tf.optimize(tf.Problem(jnp.ones(3), value), "sgd", learning_rate=0.1, stop={"max_requests": 15})
        return [(one.step, one.value, one.requests) for one in result.history]

    plain = histories(square(before=before))
    assert plain[-1][0] > 1 and plain[-1][2] >= 15
    assert histories(kept(square(before=before), recording(tmp_path))) == plain
    assert histories(kept(gone(), replay(tmp_path))) == plain


def test_what_cannot_be_written_down_is_sent_to_nobody_in_a_replay(tmp_path: Path) -> None:
    kept(square(), recording(tmp_path)).apply(X)
    with count_requests() as sent, pytest.raises(NotRecorded, match="cannot be written down"):
        kept(square(), replay(tmp_path)).apply({"x": np.array([object()])})
    assert sent.n_total == 0


def test_failures_of_the_component_are_recorded(tmp_path: Path) -> None:
    faults = Faults(ComponentFailed("the mesh folds", tesseract="t", endpoint="apply"))

    def before(endpoint: str, answer: Any) -> Any:
        faults(endpoint, None)
        return answer

    handle = kept(Watched(square(), before), recording(tmp_path))
    with pytest.raises(ComponentFailed, match="the mesh folds"):
        handle.apply(X)
    with pytest.raises(ComponentFailed, match="the mesh folds") as caught:
        kept(gone("square"), replay(tmp_path)).apply(X)
    assert (caught.value.tesseract, caught.value.endpoint) == ("t", "apply")
    # A cache has no use for it.
    assert kept(square(), DirectoryCache(tmp_path)).apply(X)["y"].tolist() == [1.0, 4.0, 9.0]


# What is not there


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (
            {"x": np.array([1.0, 2.5, 3.5])},
            r"inputs.x: 2 of 3 entries differ, the first at \[1\]: 2.5 asked for, 2.0 rec",
        ),
        ({"x": np.array([1.0, 2.0])}, r"inputs.x: float64\[2\] asked for, float64\[3\] recorded"),
        ({"x": np.array([1.0, 2.0, 3.0], np.float32)}, r"inputs.x: float32\[3\] asked for, float64\[3\] recorded"),
        ({"x": np.array([1.0, 2.0, 3.0]), "mesh": "fine"}, r"inputs.mesh: 'fine' asked for, nothing recorded"),
    ],
)
def test_a_new_question_says_what_is_new(tmp_path: Path, inputs: Any, says: str) -> None:
    handle = kept(Numbering(), recording(tmp_path))
    for x in ([9.0, 9.0, 9.0], [1.0, 2.0, 3.0], [-9.0, 0.0, 9.0]):
        handle.apply({"x": np.array(x)})
    with pytest.raises(NotRecorded, match=says) as caught:
        kept(Numbering(), replay(tmp_path)).request("apply", {"inputs": inputs})
    assert len(caught.value.difference) == 1
    assert "Nothing was sent" in str(caught.value)


def test_other_endpoints_and_components_are_told_apart(tmp_path: Path) -> None:
    kept(square(), recording(tmp_path)).apply(X)
    with pytest.raises(NotRecorded, match="No 'jacobian' of it was recorded"):
        kept(gone(), replay(tmp_path)).jacobian(X, ["x"], ["y"])
    kept(square(name="cube"), recording(tmp_path)).apply(X)
    for name in ("square", "cube"):
        assert kept(gone(name), replay(tmp_path)).name == name
    with pytest.raises(NotRecorded, match=r"is not among the components.*cube.*square"):
        kept(gone("drag"), replay(tmp_path)).apply(X)
    with pytest.raises(NotRecorded, match="is not among the components"):
        kept(HttpTesseract("http://solver.invalid:8000"), replay(tmp_path)).apply(X)


def test_a_failed_replay_is_no_failed_evaluation(tmp_path: Path) -> None:
    """A search that stepped back from it would go elsewhere without a word."""

    def problem(handle: Any) -> tf.Problem:
        return tf.Problem({"x": jnp.ones(3)}, lambda d: jnp.sum(tf.apply_tesseract(handle, d)["y"]), name="bowl")

    tf.optimize(problem(kept(square(), recording(tmp_path))), driver=optax.sgd(0.1), stop={"max_steps": 2})
    with pytest.raises(NotRecorded, match="is a new question"):
        tf.optimize(problem(kept(gone(), replay(tmp_path))), driver=optax.sgd(0.2), stop={"max_steps": 2})


def test_a_changed_component_is_stale(tmp_path: Path) -> None:
    kept(square(), recording(tmp_path)).apply(X)
    with pytest.raises(StaleRecording, match=r"version: '1.0' when it was recorded, '1.1' now"):
        kept(square(version="1.1"), replay(tmp_path)).apply(X)
    with pytest.raises(StaleRecording, match="in defaults or limits"):
        kept(version_of(square(), digest="another"), replay(tmp_path)).apply(X)
    twice = FunctionTesseract(lambda i: {"z": i["x"]}, {"x": np.ones(3)}, name="square", version="2")
    with pytest.raises(StaleRecording, match="outputs: 'z' is new"):
        kept(twice, replay(tmp_path)).apply(X)


def test_damage_is_told_and_never_removed(tmp_path: Path) -> None:
    kept(square(), recording(tmp_path)).apply(LONG)
    (arrays,) = (tmp_path / FOLDER).glob("*.arrays")
    (text,) = (tmp_path / FOLDER).glob("*.apply.*.json")
    whole = arrays.read_bytes()
    for data in (whole[:-1], whole[:-8] + bytes(8), None):
        arrays.unlink() if data is None else arrays.write_bytes(data)
        with pytest.raises(NotRecorded, match=r"(?s)cannot be used.*Restore it") as caught:
            kept(gone(), replay(tmp_path)).apply(LONG)
        assert text.name in str(caught.value)
        assert text.exists()


def test_a_recording_that_would_have_a_hole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="more than"):
        kept(square(), recording(tmp_path / "a", max_bytes=2000)).apply(LONG)
    handle = kept(square(), recording(tmp_path / "b", max_bytes=5000))
    with pytest.raises(StorageError, match="max_bytes=5000"):  # noqa: PT012  (which of them is too many)
        for k in range(10):
            handle.apply({"x": X["x"] + k})
    with pytest.raises(StorageError, match="cannot be written down"):
        kept(Numbering(lambda n: {"n": {1, 2}}), recording(tmp_path / "c")).request(
            "apply", {"inputs": {"x": object()}}
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="no recording in"):
        replay(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="expected 'use', 'record', 'replay'"):
        DirectoryCache(tmp_path, mode="play")  # type: ignore[arg-type]


# Files


def test_short_arrays_are_read_in_the_text_and_long_ones_beside_it(tmp_path: Path) -> None:
    handle = kept(square(), recording(tmp_path))
    handle.apply({"x": np.array([0.1, np.nan])})
    handle.apply(LONG)
    short, long = sorted((tmp_path / FOLDER).glob("*.apply.*.json"), key=lambda file: file.stat().st_mtime_ns)
    assert '"x": {"!array": "float64[2]", "values": [0.1, "nan"]}' in short.read_text()
    node = json.loads(long.read_text())
    at = node["answer"]["y"]["at"]
    (arrays,) = (tmp_path / FOLDER).glob("*.arrays")
    assert np.array_equal(np.fromfile(arrays, "<f8", 1000, offset=at), LONG["x"] ** 2)
    assert node["asked"]["whom"] == "FunctionTesseract(square)"
    # The layout is people's own affair, as is where the folder is.
    short.write_text(json.dumps(json.loads(short.read_text())))
    shutil.move(tmp_path / FOLDER, tmp_path / "elsewhere" / FOLDER)
    assert kept(gone(), replay(tmp_path / "elsewhere")).apply({"x": np.array([0.1, np.nan])})["y"][0] == 0.1**2


def test_arrays_of_an_answer_that_was_replaced_are_gone(tmp_path: Path) -> None:
    handle = kept(Numbering(lambda n: {"y": np.full(1000, float(n))}), recording(tmp_path))
    for _ in range(3):
        handle.apply(X)
    assert len(list((tmp_path / FOLDER).glob("*.arrays"))) == 1
    assert DirectoryCache(tmp_path).prune()[0] == 1
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_component_in_writing(tmp_path: Path) -> None:
    component = Component.of(square())
    assert Component.from_json(json.loads(json.dumps(component.to_json()))) == component
    for broken in ({}, {**component.to_json(), "schema": {}}, {**component.to_json(), "name": 3}, []):
        with pytest.raises(ValueError, match=r"component|format|text"):
            Component.from_json(broken)


# A whole run


@pytest.mark.slow
@pytest.mark.server
def test_the_beams_finished_run_is_replayed_with_sockets_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples.beam.problem import HERE, cantilever

    def run(cache: DirectoryCache) -> tf.Result:
        components = {
            name: open_tesseract(HERE / name, label=name, cache=cache) for name in ("section", "fem", "compliance")
        }
        return tf.optimize(
            cantilever(**components), driver="slsqp", stop={"max_steps": 8}, journal=tmp_path / f"run-{cache.mode}"
        )

    then = run(recording(tmp_path / "answers"))

    def blocked(*_: Any, **__: Any) -> Any:
        raise AssertionError("a socket in a replay")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr("subprocess.Popen.__init__", blocked)
    now = run(replay(tmp_path / "answers"))
    assert then.requests > 20
    assert now.requests == then.requests
    for a, b in zip(jax.tree_util.tree_leaves(now.design), jax.tree_util.tree_leaves(then.design), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert (now.value, now.reason, now.converged) == (then.value, then.reason, then.converged)
    assert [without_seconds(step) for step in now.history] == [without_seconds(step) for step in then.history]


def without_seconds(step: Any) -> dict[str, Any]:
    return {name: value for name, value in step.to_json().items() if "seconds" not in name}
