"""Identities of some problems, printed as JSON; run by `test_identity_properties` in processes of their own.

Whatever a process may order in its own way is in them: sets, dicts, names, callables, random keys, control flow, custom
derivatives, calls of components.
"""

from __future__ import annotations

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.optimize import AugmentedLagrangian, Constraint, Evaluation, Problem, build_driver
from tesseract_flow.optimize.identity import identity_of
from tesseract_flow.optimize.problem import Origin
from tesseract_flow.optimize.returned import check_evaluation
from tesseract_flow.testing import FunctionTesseract

first = FunctionTesseract(lambda i: {"y": jnp.sin(i["x"]), "note": "n"}, {"x": np.zeros(3)}, name="a", version="1")
second = FunctionTesseract(lambda i: {"y": i["x"].sum()}, {"x": np.zeros(3), "how": "well"}, name="b", version="2")


class Layers(eqx.Module):
    mlp: eqx.nn.MLP
    names: frozenset[str] = eqx.field(static=True)


@jax.custom_vjp
def clipped(x):
    return x * 2.0


clipped.defvjp(lambda x: (clipped(x), None), lambda _, c: (jnp.clip(c, -1.0, 1.0),))


def pipeline(design):
    y = apply_tesseract(first, {"x": design["x"]})["y"]
    total = apply_tesseract(second, {"x": clipped(y), "how": design["how"]})["y"]
    total = jax.lax.cond(total > 0, jnp.sin, jnp.cos, total)
    total = jax.lax.fori_loop(0, 3, lambda k, t: t * 0.5 + k.astype(t.dtype), total)
    noise = jax.random.normal(design["key"], (3,))
    return Evaluation(total + (noise * design["x"]).sum(), {"b": y.sum(), "a": y[0], "unused": y})


def network(design):
    return (jax.vmap(design["net"].mlp)(jnp.ones((4, 2))) ** 2).sum()


def hosted(design):
    def on_host(x):
        return np.asarray(x)

    x = jax.lax.stop_gradient(design["x"])
    return design["x"].sum() + jax.pure_callback(on_host, jax.ShapeDtypeStruct((3,), x.dtype), x).sum()


def identities() -> dict[str, dict]:
    net = Layers(eqx.nn.MLP(2, 1, 4, 2, key=jax.random.key(0)), frozenset({"one", "two", "three", "four"}))
    design = {"x": jnp.ones(3), "how": "well", "key": jax.random.key(3), "f": functools.partial(jnp.roll, shift=1)}
    limits = {"b": Constraint(upper=1.0), "a": Constraint(equals=0.5)}
    origin = Origin(
        "problem:factory", {"names": {"one", "two", "three"}, "deep": {"b": 1, "a": {"z", "y"}}, "h": first}
    )
    problems = {
        "pipeline": (Problem(design, pipeline, constraints=limits, origin=origin), "adam"),
        "network": (Problem({"net": net}, network), optax.chain(optax.clip(1.0), optax.adam(1e-2))),
        "hosted": (Problem({"x": jnp.ones(3)}, hosted), "lbfgs"),
    }
    return {
        name: identity_of(
            problem, build_driver(driver), AugmentedLagrangian.for_steps(), 1e-4, check_evaluation(problem)
        )
        for name, (problem, driver) in problems.items()
    }


if __name__ == "__main__":
    print(json.dumps(identities()))
