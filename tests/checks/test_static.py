"""`check`: planted faults, all reported at once and without a solve; silence where nothing is wrong."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import tesseract_flow as tf
from benchmarks.sellar.problem import sellar
from tesseract_flow.checks import Finding, Report, check
from tesseract_flow.checks.asking import handles_in
from tesseract_flow.checks.views import as_markdown, as_tables, component_rows
from tesseract_flow.client import AbstractTesseract, ReplicatedTesseract
from tesseract_flow.errors import ComponentFailed, ProblemError, Unreachable
from tesseract_flow.execute.durations import durations
from tesseract_flow.schema import ArrayField
from tesseract_flow.testing import FunctionTesseract
from tests.optimize.helpers import beam_problem, hs71_problem, rosenbrock_problem

PULLBACK = "vector_jacobian_product"


def square(name: str = "square", n: int = 3, **options: Any) -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(n)}, name=name, **options)


def found(report: Report, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


def only(report: Report) -> Finding:
    assert len(report.findings) == 1, str(report)
    return report.findings[0]


def problem_of(evaluate: Any, **options: Any) -> tf.Problem:
    return tf.Problem({"x": jnp.arange(1.0, 4.0)}, evaluate, name="planted", **options)


class TestEightFaults:
    """A pipeline in which a server is dead and seven other things are wrong."""

    @pytest.fixture(scope="class")
    @classmethod
    def report(cls) -> Report:
        dead = tf.open_tesseract("http://127.0.0.1:9", label="mesh")
        replicas = ReplicatedTesseract((square("old", version="1"), square("old", version="2")), label="section")
        without = square("fem", endpoints={"apply", "abstract_eval", "jacobian_vector_product"})
        fixed = {"k": ArrayField("float64", (None,), False)}
        closed = FunctionTesseract(
            lambda i: {"y": i["x"] * i["k"]}, {"x": np.ones(3), "k": np.ones(3)}, name="load", inputs=fixed
        )
        matrix = FunctionTesseract(lambda i: {"y": jnp.sum(i["x"])}, {"x": np.ones((2, 2))}, name="norm")

        def evaluate(design: Any) -> tf.Evaluation:
            nodes = tf.apply_tesseract(dead, {"height": design["h"]})["nodes"]
            section = tf.apply_tesseract(replicas, {"x": design["x"]})["y"]
            state = tf.apply_tesseract(without, {"x": section})["y"]
            load = tf.apply_tesseract(closed, {"x": state, "k": design["k"]})["y"]
            norm = tf.apply_tesseract(matrix, {"x": section})["y"]
            cast = design["n"].astype(int).astype(float) * jax.lax.stop_gradient(design["c"])
            return tf.Evaluation(
                jnp.sum(load) + norm + jnp.sum(2 * nodes[:, 0]) + cast, {"mass": jnp.sum(section), "volume": norm}
            )

        one = jnp.asarray(1.0)
        design = {"x": jnp.ones(3), "k": jnp.ones(3), "h": jnp.ones(3), "c": one, "n": one, "u": one, "weight": 2.0}
        problem = tf.Problem(
            design,
            evaluate,
            bounds=({"x": 2.0}, None),
            constraints={"mas": tf.Constraint(upper=1.0)},
            name="eight faults",
        )
        with tf.count_requests() as requests:
            report = check(problem)
        assert requests.n_of("apply") == requests.n_of(PULLBACK) == 0
        return report

    @pytest.mark.parametrize(
        ("kind", "where", "says"),
        [
            ("unreachable", "mesh", "cannot connect"),
            ("replicas-differ", "section", "version '1' and '2'"),
            ("no-endpoint", "fem", "derive=True) makes it from 'jacobian_vector_product', at 3 requests per gradient"),
            ("not-differentiable", "test_static.py", "input 'k' of 'load', which is not differentiable"),
            ("misfit", "norm: x", "expected shape (*, *), got shape (3,)"),
            ("no-gradient", "design: n", "a cast to int64 (test_static.py"),
            ("no-gradient", "design: c", "jax.lax.stop_gradient (test_static.py"),
            ("no-gradient", "design: u", "nothing depends on it"),
            ("constraint", "constraint 'mas'", "Did you mean 'mass'?"),
            ("constraint-unused", "constraint 'volume'", "demands nothing of it"),
            ("start", "design: x", "outside the bounds in 3 of 3 entries"),
            ("fixed-number", "design: weight", "the Python number 2.0 does not vary"),
        ],
    )
    def test_each_is_reported(self, report: Report, kind: str, where: str, says: str) -> None:
        hits = [finding for finding in found(report, kind) if where in finding.where]
        assert hits, str(report)
        assert any(says in str(finding) for finding in hits), str(report)

    def test_and_nothing_else(self, report: Report) -> None:
        assert len(report.findings) == 13, str(report)  # "k" is told of the leaf, too
        assert all(finding.remedy for finding in report.findings)
        assert not report.ok

    def test_every_view_shows_all_of_it(self, report: Report) -> None:
        console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(*as_tables(report))
        console.file.close()
        shown = console.export_text()
        written = json.loads(json.dumps(report.to_json()))
        assert [finding["kind"] for finding in written["findings"]] == [f.kind for f in report.findings]
        for finding in report.findings:
            assert finding.where.split()[0] in shown
            assert finding.message in str(report)
        assert as_markdown(report).count("\n| ") >= len(report.findings)


class TestSilence:
    @pytest.mark.parametrize("make", [beam_problem, rosenbrock_problem, hs71_problem])
    def test_plain_problems(self, make: Any) -> None:
        assert check(make()).findings == ()

    def test_sellar(self) -> None:
        one = np.array(0.0)
        y1 = FunctionTesseract(
            lambda i: {"y1": i["z"][0] ** 2 + i["z"][1] + i["x"] - 0.2 * i["y2"]},
            {"z": np.zeros(2), "x": one, "y2": one},
        )
        y2 = FunctionTesseract(
            lambda i: {"y2": jnp.sqrt(i["y1"]) + i["z"][0] + i["z"][1]}, {"z": np.zeros(2), "y1": one}
        )
        with tf.count_requests() as requests:
            report = check(sellar(y1, y2))
        assert report.findings == (), str(report)
        assert requests.n_of("apply") == 0

    @pytest.mark.slow
    @pytest.mark.server
    def test_the_beam(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from examples.beam.problem import cantilever

        monkeypatch.setattr(durations, "_seconds", OrderedDict())  # other tests of this process have called them
        problem = cantilever()
        with tf.count_requests() as requests:
            report = check(problem)
        assert report.findings == (), str(report)
        assert requests.n_of("apply") == 0
        assert report.seconds_per_gradient is None
        assert "fem.apply" in report.unknown
        assert {one.name: one.requests for one in report.components} == {"section": 2, "fem": 2, "compliance": 2}

    def test_calls_in_loops_branches_batches_and_jitted_functions(self) -> None:
        solver = square()

        @jax.jit
        def solve(x: Any) -> Any:
            return tf.apply_tesseract(solver, {"x": x})["y"]

        def evaluate(design: Any) -> Any:
            x = jax.lax.scan(lambda x, _: (solve(x) / 2, None), design["x"], None, length=2)[0]
            x = jax.lax.cond(x[0] > 0, solve, lambda x: x, x)
            x = jax.vmap(solve)(jnp.stack([x, x + 1])).sum(0)
            return jnp.sum(jnp.where(x > 0, x, -x)) + jnp.sum(jax.lax.stop_gradient(x)) * design["x"][0]

        assert check(problem_of(evaluate)).findings == ()


class TestServers:
    def test_a_server_that_is_silent_does_not_hold_up_the_check(self) -> None:
        release = threading.Event()

        class Silent(FunctionTesseract):
            def read_schema(self) -> Any:
                release.wait(60.0)
                return super().read_schema()

        silent = Silent(lambda i: {"y": i["x"]}, {"x": np.ones(3)}, name="frozen")

        def evaluate(design: Any) -> Any:
            return jnp.sum(tf.apply_tesseract(silent, design)["y"])

        report = check(problem_of(evaluate), patience=0.05)
        release.set()
        assert only(report).kind == "unreachable"
        assert "did not describe itself within 0.05 s" in only(report).message

    def test_a_replica_that_is_down_is_a_warning(self) -> None:
        class Down(FunctionTesseract):
            def read_schema(self) -> Any:
                raise Unreachable("it is down")

        down = Down(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, name="square")
        both = ReplicatedTesseract((square(), down), label="both")
        report = check(problem_of(lambda d: jnp.sum(tf.apply_tesseract(both, d)["y"])))
        assert (only(report).kind, only(report).severity) == ("replica", "warning")
        assert report.ok

    @pytest.mark.slow
    def test_a_component_opened_in_the_evaluation_is_asked_too(self) -> None:
        def evaluate(design: Any) -> Any:
            return jnp.sum(tf.apply_tesseract("http://127.0.0.1:9", design)["y"])

        assert only(check(problem_of(evaluate))).kind == "unreachable"

    def test_a_schema_is_asked_anew(self) -> None:
        """A server that has answered once may be gone."""

        class Gone(FunctionTesseract):
            def read_schema(self) -> Any:
                raise Unreachable("it is gone")

        gone = Gone(lambda i: {"y": i["x"]}, {"x": np.ones(3)}, name="gone")
        assert gone.schema is not None
        assert only(check(problem_of(lambda d: jnp.sum(tf.apply_tesseract(gone, d)["y"])))).message == "it is gone"


class TestFollowing:
    """Where a component cannot be asked, or is asked wrongly, the rest is looked at with a guess."""

    @pytest.mark.slow
    def test_a_misfit_that_may_follow_from_another_one_is_only_a_note(self) -> None:
        dead = tf.open_tesseract("http://127.0.0.1:9", label="dead")
        matrix = FunctionTesseract(lambda i: {"y": jnp.sum(i["x"])}, {"x": np.ones((2, 2))}, name="norm")

        def evaluate(design: Any) -> Any:
            x = tf.apply_tesseract(dead, design)["x"]
            return tf.apply_tesseract(matrix, {"x": jnp.sin(x)})["y"]

        report = check(problem_of(evaluate))
        assert [(f.kind, f.severity) for f in report.findings] == [("unreachable", "error"), ("unchecked", "note")]

    def test_a_fault_of_the_evaluation_itself_has_its_line(self) -> None:
        def evaluate(design: Any) -> Any:
            return jnp.sum(design["x"] + jnp.ones(2))

        finding = only(check(problem_of(evaluate)))
        assert finding.kind == "evaluate"
        assert "test_static.py" in finding.where
        assert "TypeError" in finding.message

    def test_a_wrong_name_of_an_output(self) -> None:
        solver = square()
        finding = only(check(problem_of(lambda d: jnp.sum(tf.apply_tesseract(solver, d)["z"]))))
        assert finding.kind == "no-such-output"

    def test_nothing_of_a_stand_in_stays_behind(self) -> None:
        """A jitted function that was traced with a guess is traced again when the component answers."""
        trouble = [Unreachable("not yet")]

        class Late(FunctionTesseract):
            def read_schema(self) -> Any:
                if trouble:
                    raise trouble.pop()
                return super().read_schema()

        late = Late(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, name="late")
        solve = jax.jit(lambda x: tf.apply_tesseract(late, {"x": x})["y"])
        problem = problem_of(lambda d: jnp.sum(solve(d["x"])))
        assert not check(problem).ok
        assert check(problem).findings == ()
        assert float(tf.concurrent(problem.evaluate)(problem.design)) == 14.0

    def test_an_abstract_eval_that_fails(self) -> None:
        def before(endpoint: str, inputs: Any) -> None:
            if endpoint == "abstract_eval":
                raise ComponentFailed("no mesh")

        broken = square(before=before)
        report = check(problem_of(lambda d: jnp.sum(tf.apply_tesseract(broken, d)["y"])))
        assert [f.kind for f in report.findings] == ["abstract-eval"], str(report)
        assert "no mesh" in report.findings[0].message

    def test_without_abstract_eval_the_shapes_are_a_guess(self) -> None:
        plain = square(endpoints={"apply", PULLBACK})
        with tf.count_requests() as requests:
            report = check(problem_of(lambda d: jnp.sum(tf.apply_tesseract(plain, d)["y"])))
        assert [(f.kind, f.severity) for f in report.findings] == [("no-shapes", "note")], str(report)
        assert requests.n_total == 0


class TestDerivatives:
    def test_an_output_without_derivative_that_reaches_the_objective(self) -> None:
        solver = FunctionTesseract(
            lambda i: {"y": i["x"] ** 2, "z": i["x"]},
            {"x": np.ones(3)},
            outputs={"z": ArrayField("float64", (None,), False)},
        )

        def evaluate(design: Any) -> Any:
            out = tf.apply_tesseract(solver, design)
            return jnp.sum(out["y"] + out["z"])

        finding = only(check(problem_of(evaluate)))
        assert finding.kind == "not-differentiable"
        assert "'z'" in finding.message

    @pytest.mark.parametrize(
        ("cut", "what"),
        [
            (jnp.round, "rounding"),
            (jnp.floor, "rounding down"),
            (lambda x: (x > 0).astype(float), "a comparison"),
            (jnp.sign, "the sign of a number"),
            (lambda x: jnp.argmax(x).astype(float), "argmax"),
            (lambda x: jax.lax.stop_gradient(x), "stop_gradient"),
            (lambda x: jax.pure_callback(np.sin, x, x), "a callback to Python"),
        ],
        ids=["round", "floor", "comparison", "sign", "argmax", "stop_gradient", "callback"],
    )
    def test_what_cuts_a_path_is_named(self, cut: Any, what: str) -> None:
        report = check(problem_of(lambda d: jnp.sum(cut(d["x"]))))
        assert any(what in finding.message for finding in report.findings), str(report)
        assert not report.ok

    def test_a_constant_objective(self) -> None:
        finding = only(check(problem_of(lambda d: jnp.asarray(1.0))))
        assert (finding.kind, finding.where) == ("no-gradient", "objective")

    def test_a_constraint_to_which_no_derivative_gets(self) -> None:
        def evaluate(design: Any) -> tf.Evaluation:
            return tf.Evaluation(jnp.sum(design["x"] ** 2), {"n": jnp.sum(jnp.round(design["x"]))})

        finding = only(check(problem_of(evaluate, constraints={"n": tf.Constraint(upper=1.0)})))
        assert (finding.kind, finding.where) == ("no-gradient", "constraint 'n'")

    def test_a_leaf_that_only_a_constraint_needs_is_fine(self) -> None:
        problem = tf.Problem(
            {"x": jnp.asarray(1.0), "y": jnp.asarray(1.0)},
            lambda d: tf.Evaluation(d["x"] ** 2, {"c": d["x"] + d["y"]}),
            constraints={"c": tf.Constraint(lower=1.0)},
        )
        assert check(problem).findings == ()

    def test_a_while_loop_has_no_gradient(self) -> None:
        def evaluate(design: Any) -> Any:
            return jnp.sum(jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (2 * c[0], c[1] + 1), (design["x"], 0))[0])

        finding = only(check(problem_of(evaluate)))
        assert finding.kind == "gradient"
        assert "while_loop" in finding.message

    def test_derived_endpoints_are_counted_with_their_price(self) -> None:
        solver = tf.open_tesseract(square(endpoints={"apply", "abstract_eval"}), derive="central")
        report = check(problem_of(lambda d: jnp.sum(tf.apply_tesseract(solver, d)["y"])))
        assert report.findings == ()
        assert report.components[0].calls == {"apply": 1, PULLBACK: 1}
        assert report.components[0].requests == 7
        (row,) = component_rows(report.components)
        assert f"{PULLBACK} (by differences)" in row["endpoints"] and "apply (" not in row["endpoints"]

    @pytest.mark.parametrize(("method", "price"), [("central", 1 + 6), ("forward", 1 + 4), (True, 1 + 1)])
    def test_the_price_where_no_shapes_are_told(self, method: Any, price: int) -> None:
        """A pullback's price is one of inputs alone; of those that are traced."""
        part = FunctionTesseract(
            lambda i: {"y": i["x"] ** 2 * i["k"]},
            {"x": np.ones(3), "k": np.ones(())},
            endpoints={"apply", *(["jacobian"] if method is True else [])},
        )
        solver = tf.open_tesseract(part, derive=method)
        problem = problem_of(lambda d: jnp.sum(tf.apply_tesseract(solver, {"x": d["x"], "k": np.array(2.0)})["y"]))
        (component,) = check(problem).components
        assert component.calls == {"apply": 1, PULLBACK: 1}
        assert (component.requests, component.price) == (price, f"at most {price}")
        with tf.count_requests() as requests:
            tf.concurrent(jax.value_and_grad(problem.evaluate))(problem.design)
        assert requests.n_total == price
        mapped = problem_of(
            lambda d: jnp.sum(jax.vmap(lambda k: tf.apply_tesseract(solver, {"x": d["x"], "k": k})["y"])(jnp.ones(2)))
        )
        (component,) = check(mapped).components
        assert component.calls == {"apply": 2, PULLBACK: 2}

    @pytest.mark.slow
    def test_a_price_that_nobody_knows_is_called_so(self) -> None:
        dead = tf.open_tesseract("http://127.0.0.1:9", label="dead")
        (component,) = check(problem_of(lambda d: jnp.sum(tf.apply_tesseract(dead, d)["y"]))).components
        assert (component.requests, component.price) == (None, "not known")

    def test_an_endpoint_that_may_be_missed_where_no_shapes_are_told(self) -> None:
        solver = square(endpoints={"apply", "jacobian"})
        report = check(problem_of(lambda d: jnp.sum(tf.apply_tesseract(solver, d)["y"])))
        assert [(f.kind, f.severity) for f in report.findings] == [("no-endpoint", "warning"), ("no-shapes", "note")]
        assert "derive=True) makes it from 'jacobian', at 1 request per gradient" in report.findings[0].remedy

    def test_differences_are_offered_where_nothing_else_is(self) -> None:
        solver = square(endpoints={"apply", "abstract_eval"})
        finding = only(check(problem_of(lambda d: jnp.sum(tf.apply_tesseract(solver, d)["y"]))))
        assert "derive='central'" in finding.remedy
        assert "6 requests per gradient" in finding.remedy

    def test_seconds_per_gradient_once_it_was_called(self) -> None:
        solver = square("timed", delay=0.01)
        problem = problem_of(lambda d: jnp.sum(tf.apply_tesseract(solver, d)["y"]))
        assert check(problem).unknown == ("timed.pullback",) or check(problem).seconds_per_gradient is None
        tf.concurrent(jax.value_and_grad(problem.evaluate))(problem.design)
        report = check(problem)
        assert report.seconds_per_gradient is not None
        assert report.seconds_per_gradient >= 0.01


class TestConstraintNames:
    def test_a_misspelt_one_is_one_fault_with_one_advice(self) -> None:
        """And the advice is the same wherever it is noticed."""
        problem = problem_of(
            lambda d: tf.Evaluation(jnp.sum(d["x"]), {"mass": jnp.sum(d["x"])}),
            constraints={"mas": tf.Constraint(upper=1.0)},
        )
        finding = only(check(problem))
        assert (finding.kind, finding.where) == ("constraint", "constraint 'mas'")
        assert "Did you mean 'mass'?" in finding.message
        assert finding.remedy == "Call it 'mass' in constraints= as well, or 'mas' in what evaluate returns."
        with pytest.raises(ProblemError) as refused:
            tf.check_gradients(problem)
        assert finding.remedy in str(refused.value)
        assert "Did you mean 'mass'?" in str(refused.value)

    def test_another_name_altogether(self) -> None:
        problem = problem_of(
            lambda d: tf.Evaluation(jnp.sum(d["x"]), {"volume": jnp.sum(d["x"])}),
            constraints={"mas": tf.Constraint(upper=1.0)},
        )
        assert [finding.kind for finding in check(problem).findings] == ["constraint", "constraint-unused"]


class TestDesign:
    def test_x64(self) -> None:
        solver = square()
        with jax.enable_x64(False):
            problem = tf.Problem({"x": jnp.ones(3)}, lambda d: jnp.sum(tf.apply_tesseract(solver, d)["y"]))
            finding = only(check(problem))
        assert finding.kind == "x64"
        assert "'y'" in finding.message

    def test_without_64_bits_one_fault_hides_no_other(self) -> None:
        """What it is given misspelt, and the pullback that it lacks, were only told once 64 bits were on."""
        lacking = square("lacking", endpoints={"apply", "abstract_eval"})

        def evaluate(design: Any) -> Any:
            y = tf.apply_tesseract(square("misspelt"), {"X": design["x"]})["y"]
            return jnp.sum(y) + jnp.sum(tf.apply_tesseract(lacking, {"x": design["x"]})["y"])

        with jax.enable_x64(False):
            report = check(tf.Problem({"x": jnp.arange(1.0, 4.0)}, evaluate, name="planted"))
        kinds = {finding.kind for finding in report.findings}
        assert kinds == {"x64", "misfit", "no-endpoint"} and not report.ok
        assert {finding.where for finding in found(report, "x64")} == {"lacking", "misspelt"}

    @pytest.mark.parametrize(
        ("valid", "aux", "says"),
        [
            ("fem.convergd", lambda x: {"fem": {"converged": x < 1}}, "Did you mean 'fem.converged'"),
            ("ok", lambda x: {"ok": True}, "is the constant True"),
            ("ok", lambda x: {"ok": x}, "expected bool"),
            ("ok", lambda x: None, "returns no aux"),
        ],
    )
    def test_flags_of_validity(self, valid: str, aux: Any, says: str) -> None:
        finding = only(
            check(problem_of(lambda d: tf.Evaluation(jnp.sum(d["x"] ** 2), aux=aux(d["x"].sum())), valid=valid))
        )
        assert (finding.kind, finding.severity, finding.where) == ("flag", "error", f"valid: {valid}")
        assert says in finding.message and finding.remedy
        with pytest.raises(ProblemError, match=re.escape(says)):
            tf.optimize(problem_of(lambda d: tf.Evaluation(jnp.sum(d["x"]), aux=aux(d["x"].sum())), valid=valid))

    def test_a_constraint_that_is_a_tree(self) -> None:
        demands = {"c": tf.Constraint(upper=1.0)}
        tree = problem_of(lambda d: tf.Evaluation(jnp.sum(d["x"] ** 2), {"c": {"a": d["x"]}}), constraints=demands)
        finding = only(check(tree))
        assert (finding.kind, finding.severity) == ("constraints", "error") and "a name of its own" in finding.remedy

    def test_an_array_of_integers_does_not_vary(self) -> None:
        design = {"x": jnp.ones(3), "heights": jnp.ones(6, int)}
        finding = only(check(tf.Problem(design, lambda d: jnp.sum(d["x"] ** 2) + d["heights"].sum().astype(float))))
        assert finding.severity == "note" and "dtype int64 does not vary" in finding.message

    @pytest.mark.parametrize(
        ("evaluate", "says"),
        [
            (lambda d: d["x"].sum() if d["x"][0] > 0 else d["x"].sum() ** 2, "jnp.where"),
            (lambda d: jnp.sum(d["x"]) * float(d["x"][0]), "keep the array"),
            (lambda d: jnp.sum(jnp.asarray(np.asarray(d["x"]))), "keep the array"),
            (lambda d: jnp.sum(d["X"]), "that has: x"),
            (
                lambda d: tf.Evaluation(jnp.sum(d["x"]), aux={"x": d["x"], 1: d["x"]}),
                "Make all keys of a dictionary texts",
            ),
        ],
    )
    def test_an_evaluation_that_fails_has_a_remedy(self, evaluate: Any, says: str) -> None:
        finding = only(check(problem_of(evaluate)))
        assert finding.kind == "evaluate" and says in finding.remedy
        assert "\n" not in finding.message and "test_static.py" in finding.where

    def test_a_number_that_the_author_keeps_fixed_is_no_news(self) -> None:
        def start(**options: Any) -> tf.Problem:
            return tf.Problem({"x": jnp.asarray(1.0), "weight": 2.0}, lambda d: d["weight"] * d["x"] ** 2, **options)

        assert only(check(start())).kind == "fixed-number"
        assert check(start()).ok
        assert check(start(vary={"x": True, "weight": False})).findings == ()
        assert check(start(vary=eqx.is_array)).findings == ()

    def test_bounds_that_leave_no_room(self) -> None:
        report = check(problem_of(lambda d: jnp.sum(d["x"] ** 2), bounds=(2.0, 2.0)))
        assert [f.kind for f in report.findings] == ["start", "start"]
        assert any("cannot move" in f.message for f in report.findings)

    @pytest.mark.parametrize(("size", "how"), [(1e-6, "far too long"), (1e7, "next to nothing")])
    def test_a_scale_that_is_far_off(self, size: float, how: str) -> None:
        problem = tf.Problem({"x": jnp.full(3, size)}, lambda d: jnp.sum(d["x"] ** 2))
        assert how in only(check(problem)).message
        assert check(tf.Problem(problem.design, problem.evaluate, scale=size)).findings == ()

    def test_an_objective_that_is_no_scalar(self) -> None:
        assert only(check(problem_of(lambda d: d["x"]))).kind == "objective"
        assert any(f.kind == "objective" for f in check(problem_of(lambda d: "no number")).findings)

    def test_what_is_no_problem_is_refused(self) -> None:
        with pytest.raises(ProblemError, match=r"check takes a tesseract_flow\.Problem"):
            check(lambda x: x)  # type: ignore[arg-type]


def test_handles_are_found_wherever_a_function_holds_them() -> None:
    a, b, c, d, e = (square(name) for name in "abcde")

    def inner(x: Any) -> Any:
        return tf.apply_tesseract(b, x)

    class Model(eqx.Module):
        handle: AbstractTesseract = eqx.field(static=True)

        def __call__(self, x: Any, also: Any = c) -> Any:
            return tf.apply_tesseract(self.handle, x)

    model, compiled = Model(d), jax.jit(inner)

    def outer(x: Any, handles: Any = ({"e": [e]},)) -> Any:
        return tf.apply_tesseract(a, x), compiled(x), model(x)

    assert {handle.name for handle in handles_in(outer)} == set("abcde")
