"""What may go on from a journal, and what may not: the cases that once gave a wrong number without a word."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.cli import main
from tesseract_flow.errors import JournalError, OtherRun, ProblemError
from tesseract_flow.optimize import Constraint, Evaluation, MaxSteps, Problem, load_problem, optimize, read_contents
from tesseract_flow.optimize.identity import digest_of
from tesseract_flow.testing import FunctionTesseract

AMPLITUDE = """
import jax.numpy as jnp
import tesseract_flow as tf

OFFSET = 0.0


def problem(amplitude=0.5):
    return tf.Problem({"x": jnp.asarray(0.0)}, lambda design: (design["x"] - amplitude - OFFSET) ** 2)
"""


@pytest.fixture
def amp(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "amp.py"
    file.write_text(AMPLITUDE)
    return file


def solved(problem, journal, n=20, **options):
    return optimize(problem, "lbfgs", stop=MaxSteps(n), journal=journal, transform=jax.jit, **options)


def test_another_setting_is_refused_in_python_and_there_are_ways_on(amp, tmp_path):
    low, high = (load_problem(f"{amp}:problem", {"amplitude": amplitude}) for amplitude in (0.2, 0.9))
    journal = tmp_path / "J"
    assert float(solved(low, journal).design["x"]) == pytest.approx(0.2)
    with pytest.raises(OtherRun) as refusal:
        solved(high, journal)
    assert refusal.value.changes[0] == "factory.settings.amplitude: 0.2 -> 0.9"
    assert "float64[] = 0.2" in refusal.value.changes[1] and "float64[] = 0.9" in refusal.value.changes[1]
    for way in ("another folder", f"start_from={str(journal)!r}", "accept_changes=True"):
        assert way in str(refusal.value)
    # Nothing was done to it.
    assert float(solved(low, journal).design["x"]) == pytest.approx(0.2)
    started = solved(high, tmp_path / "K", start_from=journal)
    assert started.history[0].value == pytest.approx(0.49)
    (event,) = started.history[0].events
    assert event.startswith("started from the best design (step ") and event.endswith(f" of journal {journal}")
    accepted = solved(high, journal, accept_changes=True)
    assert float(accepted.design["x"]) == pytest.approx(0.9)
    events = [event for record in accepted.history for event in record.events]
    assert events[0] == "changed and accepted: factory.settings.amplitude: 0.2 -> 0.9"
    assert "accepted: factory.settings.amplitude: 0.2 -> 0.9" in accepted.notes[0]
    assert read_contents(journal).accepted[0] == (2, "factory.settings.amplitude: 0.2 -> 0.9")
    # From now on it is the changed problem's, and the old one is refused.
    assert solved(high, journal).steps == accepted.steps
    with pytest.raises(OtherRun, match=r"amplitude: 0\.9 -> 0\.2"):
        solved(low, journal)


def test_another_setting_is_refused_on_the_command_line_and_there_are_ways_on(amp, tmp_path, capsys):
    def run(*options):
        return main(["optimize", f"{amp}:problem", "--driver", "lbfgs", *options])

    journal, other = str(tmp_path / "J"), str(tmp_path / "K")
    assert run("--set", "amplitude=0.2", "--journal", journal) == 0
    capsys.readouterr()
    assert run("--set", "amplitude=0.9", "--journal", journal) != 0
    shown = "".join(capsys.readouterr())
    assert "factory.settings.amplitude: 0.2 -> 0.9" in shown and "--accept-changes" in shown and "--start-from" in shown
    assert run("--set", "amplitude=0.9", "--journal", other, "--start-from", journal, "--start-design", "last") == 0
    out = tmp_path / "out"
    assert run("--set", "amplitude=0.9", "--journal", journal, "--accept-changes", "--out", str(out)) == 0
    with np.load(out / "design.npz") as design:
        assert float(design["x"]) == pytest.approx(0.9)
    assert "amplitude: 0.2 -> 0.9" in json.loads((out / "result.json").read_text())["notes"][0]


def test_a_changed_constant_in_the_source_is_refused_and_a_comment_is_not(amp, tmp_path):
    def run():
        return solved(load_problem(f"{amp}:problem"), tmp_path / "J")

    assert float(run().design["x"]) == pytest.approx(0.5)
    amp.write_text(AMPLITUDE + "# a comment\n\n\ndef unused():\n    pass\n")
    moved = tmp_path / "elsewhere" / "amp.py"
    moved.parent.mkdir()
    shutil.copy(amp, moved)
    assert solved(load_problem(f"{moved}:problem"), tmp_path / "J").steps == run().steps
    amp.write_text(AMPLITUDE.replace("OFFSET = 0.0", "OFFSET = 0.1"))
    with pytest.raises(OtherRun, match=r"objective: .* -> .*float64\[\] = 0\.1"):
        run()


def component(shift: float, version: str | None, name: str = "well") -> FunctionTesseract:
    return FunctionTesseract(
        lambda i: {"y": jnp.sum((i["x"] - 2.0) ** 2) + shift}, {"x": np.zeros(2)}, name=name, version=version
    )


def through(*handles: FunctionTesseract) -> Problem:
    def evaluate(design):
        return sum(apply_tesseract(handle, {"x": design["x"]})["y"] for handle in handles)

    return Problem({"x": jnp.zeros(2)}, evaluate)


def run_through(*handles, journal, n=3, **options):
    return optimize(through(*handles), learning_rate=0.3, stop=MaxSteps(n), journal=journal, **options)


def test_another_version_of_a_component_is_refused_by_name(tmp_path):
    run_through(component(-100.0, "1.0"), journal=tmp_path / "J")
    with pytest.raises(OtherRun) as refusal:
        run_through(component(11.94, "2.0"), journal=tmp_path / "J")
    assert refusal.value.changes == ("version of component 'well': '1.0' -> '2.0'",)
    accepted = run_through(component(11.94, "2.0"), journal=tmp_path / "J", n=80, accept_changes=True)
    assert accepted.value == pytest.approx(11.94, abs=0.05)
    assert accepted.history[4].best_value > 0  # what the old one said of the best design is gone


def test_components_in_control_flow_count_too(tmp_path):
    def scanned(handle):
        def body(carry, _):
            return carry + apply_tesseract(handle, {"x": carry})["y"] * 0.01, None

        return Problem({"x": jnp.zeros(2)}, lambda design: jax.lax.scan(body, design["x"], None, length=2)[0].sum())

    optimize(scanned(component(0.0, "1.0")), stop=MaxSteps(1), journal=tmp_path)
    with pytest.raises(OtherRun, match=r"version of component 'well': '1\.0' -> '2\.0'"):
        optimize(scanned(component(0.0, "2.0")), stop=MaxSteps(1), journal=tmp_path)


def test_a_component_more_or_less_is_refused(tmp_path):
    run_through(component(0.0, "1.0"), journal=tmp_path)
    with pytest.raises(OtherRun, match=r"component 'other': \(absent\) -> version '1\.0'"):
        run_through(component(0.0, "1.0"), component(0.0, "1.0", "other"), journal=tmp_path)


def test_a_component_that_says_no_version_is_asked_once_more(tmp_path):
    first = run_through(component(-100.0, None), journal=tmp_path)
    again = run_through(component(-100.0, None), journal=tmp_path)
    assert "evaluated again and is the same" in again.notes[0] and "says no version" in again.notes[0]
    assert (again.evaluations, again.requests) == (first.evaluations, first.requests)
    with pytest.raises(OtherRun, match=r"objective at step 3: -9\d\.\d+ -> 1\d\.\d+"):
        run_through(component(11.94, None), journal=tmp_path)
    accepted = run_through(component(11.94, None), journal=tmp_path, n=80, accept_changes=True)
    assert accepted.value == pytest.approx(11.94, abs=0.05)


def test_what_changed_behind_the_same_version_is_found_when_asked_for(tmp_path):
    run_through(component(-100.0, "1.0"), journal=tmp_path)
    run_through(component(11.94, "1.0"), journal=tmp_path)  # nobody can know
    with pytest.raises(OtherRun, match="objective at step 3"):
        run_through(component(11.94, "1.0"), journal=tmp_path, recheck=True)
    assert run_through(component(-100.0, "1.0"), journal=tmp_path, recheck=True).steps == 3


def hosted(shift):
    def on_host(x):
        return np.asarray(x + shift)

    @jax.custom_jvp
    def shifted(x):
        return jax.pure_callback(on_host, jax.ShapeDtypeStruct((), x.dtype), x)

    shifted.defjvps(lambda tangent, _, x: tangent)
    return Problem({"x": jnp.asarray(3.0)}, lambda design: shifted(design["x"] ** 2))


def test_a_host_function_has_no_text_so_its_last_point_decides(tmp_path):
    optimize(hosted(1.0), stop=MaxSteps(2), journal=tmp_path, transform=jax.jit)
    again = optimize(hosted(1.0), stop=MaxSteps(4), journal=tmp_path, transform=jax.jit)
    assert "the host callback hosted.<locals>.on_host" in again.notes[0]
    with pytest.raises(OtherRun, match="objective at step 4"):
        optimize(hosted(1.5), stop=MaxSteps(6), journal=tmp_path, transform=jax.jit)


def test_another_derivative_rule_is_refused(tmp_path):
    def ruled(factor):
        @jax.custom_vjp
        def square(x):
            return x**2

        square.defvjp(lambda x: (square(x), x), lambda x, c: (factor * x * c,))
        return Problem({"x": jnp.asarray(3.0)}, lambda design: square(design["x"]))

    optimize(ruled(2.0), stop=MaxSteps(2), journal=tmp_path, transform=jax.jit)
    with pytest.raises(OtherRun, match="the objective's derivative: a custom rule of it changed"):
        optimize(ruled(2.5), stop=MaxSteps(4), journal=tmp_path, transform=jax.jit)
    optimize(ruled(2.0), stop=MaxSteps(4), journal=tmp_path, transform=jax.jit)


def as_another_version_of_jax_wrote_it(journal: pathlib.Path) -> None:
    """The text is another one, as it would be."""
    from tesseract_flow.optimize.ledger import Entry, Ledger, read_ledger
    from tesseract_flow.storage import open_store

    store = open_store(journal)
    ledger, _, _ = read_ledger(store, store.names())
    assert ledger is not None
    identity = json.loads(json.dumps(ledger.last.identity))
    identity["versions"]["jax"] = "0.1"
    identity["objective"] = {"digest": "d", "gradient": "g", "lines": ["mul x x"]}
    Ledger((ledger.last, Entry(identity, because="compared"))).write(store)
    assert identity["versions"]["jax"] != importlib.metadata.version("jax")


def constrained(sign: float = 1.0, more: float = 0.0):
    def evaluate(design):
        x = design["x"]
        return Evaluation(sign * (x**2).sum() + more, {"sum": x.sum()})

    return Problem({"x": jnp.array([1.0, 2.0])}, evaluate, constraints={"sum": Constraint(lower=1.0)})


@pytest.mark.slow
def test_another_version_of_jax_does_not_strand_a_run(tmp_path):
    undisturbed = optimize(constrained(), "adam", stop=MaxSteps(30), transform=jax.jit)
    optimize(constrained(), "adam", stop=MaxSteps(12), journal=tmp_path, transform=jax.jit)
    as_another_version_of_jax_wrote_it(tmp_path)
    with pytest.raises(OtherRun, match=r"(?s)objective at step 12: .* tolerance 1e-06"):
        optimize(constrained(more=1e-3), "adam", stop=MaxSteps(30), journal=tmp_path, transform=jax.jit)
    resumed = optimize(constrained(), "adam", stop=MaxSteps(30), journal=tmp_path, transform=jax.jit)
    assert "versions.jax" not in resumed.notes[0] and 'jax: "0.1" -> ' in resumed.notes[0]
    assert resumed.design["x"].tolist() == undisturbed.design["x"].tolist()
    assert resumed.evaluations == undisturbed.evaluations
    # It is known now, and not compared again.
    assert optimize(constrained(), "adam", stop=MaxSteps(30), journal=tmp_path, transform=jax.jit).notes == ()


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path, amp):
    low, high = (load_problem(f"{amp}:problem", {"amplitude": amplitude}) for amplitude in (0.2, 0.9))
    solved(low, tmp_path / "low", n=1)
    solved(high, tmp_path / "high")
    newest = max((tmp_path / "high").glob("*.ckpt"))
    shutil.copy(newest, tmp_path / "low")
    result = solved(low, tmp_path / "low")
    assert float(result.design["x"]) == pytest.approx(0.2)
    assert f"{newest.name} belongs to another run" in result.notes[0]


def test_what_may_change_freely_does(tmp_path):
    first = run_through(component(0.0, "1.0"), journal=tmp_path)
    elsewhere = component(0.0, "1.0")
    elsewhere.n_lanes = 3
    seen = []
    again = run_through(elsewhere, journal=tmp_path, n=5, on_failure="stop", clock=lambda: float(len(seen)))
    assert again.steps == 5 and again.history[:4] == first.history


def test_a_run_starts_from_the_last_design_too_and_keeps_what_does_not_vary(tmp_path):
    def problem(label, scale=1.0, target=3.0):
        def evaluate(design):
            return ((design["x"] - target) ** 2).sum()

        return Problem({"x": jnp.zeros(2), "label": label}, evaluate, scale=scale)

    # So long a step overshoots, and the last design is not the best one.
    first = optimize(problem("a"), "sgd", learning_rate=0.95, stop=MaxSteps(3), journal=tmp_path, transform=jax.jit)
    last = read_contents(tmp_path).last["x"]
    for which, expected in (("best", first.design["x"]), ("last", last)):
        started = optimize(problem("b", scale=7.0), stop=MaxSteps(0), start_from=(tmp_path, which), transform=jax.jit)
        assert started.design["x"].tolist() == np.asarray(expected).tolist() and started.design["label"] == "b"
    with pytest.raises(ProblemError, match="'best' or 'last'"):
        optimize(problem("b"), start_from=(tmp_path, "first"))  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match=r"what varies here is y, and there x"):
        optimize(Problem({"y": jnp.zeros(2)}, lambda design: design["y"].sum()), start_from=tmp_path)
    with pytest.raises(ProblemError, match=r"'x' has shape \(3,\) here, and \(2,\) there"):
        optimize(Problem({"x": jnp.zeros(3)}, lambda design: design["x"].sum()), start_from=tmp_path)
    with pytest.raises(JournalError, match="There is no journal"):
        optimize(problem("b"), start_from=tmp_path / "nothing")


def test_a_change_of_scale_and_bounds_can_be_accepted(tmp_path):
    def problem(**options):
        return Problem({"x": jnp.array([4.0, 4.0])}, lambda design: (design["x"] ** 2).sum(), **options)

    optimize(problem(), stop=MaxSteps(5), journal=tmp_path, transform=jax.jit)
    before = read_contents(tmp_path).last["x"]
    options = {"scale": 10.0, "bounds": (1.0, 3.5)}
    with pytest.raises(OtherRun, match=r"(?s)lower\.x.*upper\.x.*scale\.x"):
        optimize(problem(**options), stop=MaxSteps(6), journal=tmp_path, transform=jax.jit)
    result = optimize(problem(**options), stop=MaxSteps(6), journal=tmp_path, transform=jax.jit, accept_changes=True)
    assert (before > 3.5).all() and result.history[6].value == pytest.approx(2 * 3.5**2)
    final = optimize(problem(**options), stop=MaxSteps(80), journal=tmp_path, transform=jax.jit)
    assert final.design["x"].tolist() == [1.0, 1.0]


def test_a_death_between_accepting_and_the_next_step_forgets_neither(tmp_path):
    optimize(constrained(), "adam", stop=MaxSteps(4), journal=tmp_path, transform=jax.jit)

    def interrupted(fn):
        def call(*args):
            raise KeyboardInterrupt

        return call

    with pytest.raises(KeyboardInterrupt):
        optimize(constrained(more=5.0), "adam", journal=tmp_path, transform=interrupted, accept_changes=True)
    result = optimize(constrained(more=5.0), "adam", stop=MaxSteps(6), journal=tmp_path, transform=jax.jit)
    assert result.value > 5.0 and "changed and accepted" in result.history[5].events[0]


# What an input of a component is called, or holds, may look like a secret and still decide the answer.
HIDDEN = {
    "number": ("n_pin", 3, 5, r"\*\*\*=\w+.* -> .*\*\*\*="),
    "text": ("signature", "sine", "square", "objective at step"),
    "user": ("mesh", "s3://v1@bucket/mesh.h5", "s3://v2@bucket/mesh.h5", "objective at step"),
    "query": ("mesh", "https://d/m?signature=v1", "https://d/m?signature=v2", "objective at step"),
    "address": ("mesh", "https://d/mesh-v1.h5", "https://d/mesh-v2.h5", "v1.h5.* -> .*v2.h5"),
}


@pytest.mark.parametrize("where", ["input", "leaf"])
@pytest.mark.parametrize("kind", HIDDEN)
def test_what_is_hidden_still_counts(tmp_path, kind, where):
    """An old journal answered for another problem, as its text showed `***` for both."""
    name, first, second, told = HIDDEN[kind]

    def fn(inputs):
        return {"y": (inputs["x"] - (3.0 if inputs[name] == first else 5.0)) ** 2}

    solver = FunctionTesseract(fn, {"x": np.float64(0.0), name: first}, name="solver", version="1.0")

    def problem(value):
        fixed = {} if where == "input" else {name: value}
        given = (lambda design: {name: value}) if where == "input" else (lambda design: {name: design[name]})
        evaluate = lambda design: apply_tesseract(solver, {"x": design["x"], **given(design)})["y"]  # noqa: E731
        return Problem({"x": jnp.asarray(0.0), **fixed}, evaluate)

    assert float(solved(problem(first), tmp_path).design["x"]) == pytest.approx(3.0)
    assert not solved(problem(first), tmp_path).notes
    with pytest.raises(OtherRun, match=told):
        solved(problem(second), tmp_path)


def test_a_renewed_token_is_another_text_and_the_same_problem(tmp_path):
    solver = FunctionTesseract(
        lambda i: {"y": (i["x"] - 3.0) ** 2}, {"x": np.float64(0.0), "token": ""}, name="solver", version="1.0"
    )

    def problem(token):
        return Problem(
            {"x": jnp.asarray(0.0)}, lambda design: apply_tesseract(solver, {"x": design["x"], "token": token})["y"]
        )

    solved(problem("of monday"), tmp_path)
    (note,) = solved(problem("of tuesday"), tmp_path).notes
    assert "evaluated again and is the same" in note and "may be a secret" in note and "day" not in note


def test_settings_that_an_author_names_count_also_where_they_are_addresses(tmp_path):
    def problem(**settings):
        return Problem({"x": jnp.asarray(0.0)}, lambda design: (design["x"] - 3.0) ** 2, settings=settings)

    solved(problem(mesh="https://data.example/v1.h5", url="http://here:8000", pin=1), tmp_path)
    (note,) = solved(problem(mesh="https://data.example/v2.h5", url="http://there:8000", pin=1), tmp_path).notes
    assert "v1.h5" in note and "v2.h5" in note and "here" not in note
    with pytest.raises(OtherRun, match=r"settings\.pin"):
        solved(problem(mesh="https://data.example/v1.h5", pin=2), tmp_path)


def test_what_counts_as_valid_is_part_of_the_problem(tmp_path):
    def problem(limit):
        return Problem(
            {"x": jnp.asarray(0.0)},
            lambda design: Evaluation((design["x"] - 3.0) ** 2, aux={"ok": design["x"] < limit}),
            valid="ok",
        )

    assert solved(problem(4.0), tmp_path).value == pytest.approx(0.0)
    with pytest.raises(OtherRun, match=r"4\.0.*1\.0"):
        solved(problem(1.0), tmp_path)


def test_how_jax_draws_random_numbers_is_looked_at(tmp_path):
    def problem():
        return Problem(
            {"x": jnp.asarray(0.0)}, lambda design: (design["x"] - jax.random.normal(jax.random.key(0), ())) ** 2
        )

    way = jax.config.jax_threefry_partitionable
    solved(problem(), tmp_path)
    try:
        jax.config.update("jax_threefry_partitionable", not way)
        with pytest.raises(OtherRun, match="jax_threefry_partitionable"):
            solved(problem(), tmp_path)
    finally:
        jax.config.update("jax_threefry_partitionable", way)


def test_a_driver_with_a_host_function_is_a_doubt(tmp_path):
    def clipping(limit):
        def update(updates, state, params=None):
            def clip(g):
                return np.clip(g, -limit, limit)

            moves = jax.tree.map(lambda g: -0.1 * jax.pure_callback(clip, jax.typeof(g), g), updates)
            return moves, state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    problem = Problem({"x": jnp.asarray(0.0)}, lambda design: (design["x"] - 3.0) ** 2)
    optimize(problem, clipping(1e3), stop=MaxSteps(3), journal=tmp_path, transform=jax.jit)
    (note,) = optimize(problem, clipping(1e4), stop=MaxSteps(5), journal=tmp_path, transform=jax.jit).notes[:1]
    assert "host callback" in note and "in the driver" in note


def test_two_leaves_of_one_name_are_refused():
    """One of them was lost in the journal, and what could not be resumed was told as another structure."""
    twins = {"a": {"b": jnp.asarray(1.0)}, "a.b": jnp.asarray(2.0)}
    with pytest.raises(ProblemError, match=r"called 'a\.b'"):
        Problem(twins, lambda design: design["a.b"])
    flags = {"flow": {"ok": jnp.asarray(False)}, "flow.ok": jnp.asarray(True)}
    problem = Problem({"x": jnp.asarray(1.0)}, lambda design: Evaluation(design["x"], aux=flags), valid="flow.ok")
    with pytest.raises(ProblemError, match="more than one leaf of aux"):
        optimize(problem, stop=MaxSteps(1), transform=jax.jit)


def test_secrets_do_not_get_into_a_journal(tmp_path):
    problem = constrained()
    secrets = {"url": "http://bob:planted@host", "token": "planted", "deep": {"password": "planted"}, "n": 3}
    problem = dataclasses.replace(problem, settings=secrets, design={**problem.design, "api_key": "planted"})
    result = optimize(problem, "adam", stop=MaxSteps(2), journal=tmp_path, transform=jax.jit)
    assert result.steps == 2
    for path in tmp_path.iterdir():
        assert b"planted" not in path.read_bytes(), path
    with pytest.raises(OtherRun, match=r"settings\.n: 3 -> 4"):
        optimize(dataclasses.replace(problem, settings={**secrets, "n": 4}), journal=tmp_path, transform=jax.jit)
    # Another password is no other run.
    changed = dataclasses.replace(problem, settings={**secrets, "url": "http://eve:other@elsewhere", "token": "t"})
    assert optimize(changed, "adam", stop=MaxSteps(2), journal=tmp_path, transform=jax.jit).steps == 2


def old_journal(folder: pathlib.Path, made: Problem, **changes) -> None:
    """A journal as version 0.1 wrote it: a fingerprint without the objective, and a history beside the checkpoints."""
    import hashlib

    from tesseract_flow.optimize.checkpoint import _digest
    from tesseract_flow.storage import open_store

    optimize(made, "adam", stop=MaxSteps(5), journal=folder, transform=jax.jit)
    store, contents = open_store(folder), read_contents(folder)
    assert contents.identity is not None
    apart = ("objective", "components", "versions", "doubts", "factory")
    old = {key: value for key, value in contents.identity.items() if key not in apart}
    (folder / "fingerprint.json").write_text(json.dumps({**old, **changes}))
    for name in ("identity.json", "identity-copy.json"):
        store.remove(name)
    lines = store.read("history.jsonl").splitlines(keepends=True)
    for path in folder.glob("*.ckpt"):
        line, _, payload = path.read_bytes().partition(b"\n")
        header = json.loads(line)
        kept = b"".join(lines[: header["step"] + 1])
        n_bytes = sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for _, dtype, shape in header["arrays"])
        header = {key: header[key] for key in ("format", "step", "byteorder", "arrays")}
        header |= {"version": 1, "length": n_bytes, "history_length": len(kept)}
        header["history_sha256"] = hashlib.sha256(kept).hexdigest()
        header["sha256"] = _digest(header, payload[:n_bytes])
        path.write_bytes(json.dumps(header).encode() + b"\n" + payload[:n_bytes])


def test_an_old_journal_goes_on_if_its_last_point_is_the_same(tmp_path):
    undisturbed = optimize(constrained(), "adam", stop=MaxSteps(12), transform=jax.jit)
    old_journal(tmp_path / "J", constrained())
    assert read_contents(tmp_path / "J").step == 5
    with pytest.raises(OtherRun, match="objective at step 5"):
        optimize(constrained(more=1.0), "adam", stop=MaxSteps(12), journal=tmp_path / "J", transform=jax.jit)
    started = optimize(constrained(more=1.0), "adam", stop=MaxSteps(0), start_from=tmp_path / "J", transform=jax.jit)
    assert started.design["x"].tolist() == read_contents(tmp_path / "J").best["x"].tolist()
    resumed = optimize(constrained(), "adam", stop=MaxSteps(12), journal=tmp_path / "J", transform=jax.jit)
    assert resumed.design["x"].tolist() == undisturbed.design["x"].tolist()
    assert "which this journal did not record" in resumed.notes[0]
    assert optimize(constrained(), "adam", stop=MaxSteps(12), journal=tmp_path / "J", transform=jax.jit).notes == ()
    (tmp_path / "J" / "fingerprint.json").unlink()
    assert digest_of(read_contents(tmp_path / "J").identity or {}) == read_contents(tmp_path / "J").run


def test_an_old_journal_of_another_problem_is_refused(tmp_path):
    old_journal(tmp_path, constrained(), problem="another")
    with pytest.raises(OtherRun, match='problem: "another" -> "problem"'):
        optimize(constrained(), "adam", journal=tmp_path, transform=jax.jit)
