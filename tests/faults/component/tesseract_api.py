"""A plate under load with a closed form: arrays of one and of two axes, a number, whole numbers and a plain value.

`y = s W x²`, `z = W sin x` (column by column), `e = s Σ x²`. NumPy alone: the faulty server computes its answers on
threads beside the client's JAX, which may be waiting for them.
"""

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64, Int64

INPUTS = ("x", "w", "s")
OUTPUTS = ("y", "z", "e")


class InputSchema(BaseModel):
    x: Differentiable[Array[(None,), Float64]]
    w: Differentiable[Array[(None, None), Float64]]
    s: Differentiable[Float64]
    mode: str = "plain"


class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]
    z: Differentiable[Array[(None, None), Float64]]
    e: Differentiable[Float64]
    rows: Array[(None,), Int64]
    status: str


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(**answer("apply", {"inputs": dict(inputs)}))


def abstract_eval(abstract_inputs):
    return answer(
        "abstract_eval", {"inputs": {key: value.model_dump() for key, value in abstract_inputs if key in "xws"}}
    )


def jacobian(inputs: InputSchema, jac_inputs: set[str], jac_outputs: set[str]):
    payload = {"inputs": dict(inputs), "jac_inputs": jac_inputs, "jac_outputs": jac_outputs}
    return answer("jacobian", payload)


def jacobian_vector_product(
    inputs: InputSchema, jvp_inputs: set[str], jvp_outputs: set[str], tangent_vector: dict[str, np.ndarray]
):
    payload = {"inputs": dict(inputs), "jvp_outputs": jvp_outputs, "tangent_vector": tangent_vector}
    return answer("jacobian_vector_product", payload)


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, np.ndarray]
):
    payload = {"inputs": dict(inputs), "vjp_inputs": vjp_inputs, "cotangent_vector": cotangent_vector}
    return answer("vector_jacobian_product", payload)


def answer(endpoint: str, payload: dict) -> dict:
    """What the component answers, as a tree; the same for this runtime and for a server of faults."""
    inputs = payload["inputs"]
    if endpoint == "abstract_eval":
        m, n = inputs["w"]["shape"]
        shapes = {"y": (m,), "z": (m, n), "e": (), "rows": (m,)}
        abstract = {
            key: {"shape": list(shape), "dtype": "int64" if key == "rows" else "float64"}
            for key, shape in shapes.items()
        }
        return {**abstract, "status": "done"}
    x, w, s = (np.asarray(inputs[key]) for key in INPUTS)
    if endpoint == "apply":
        return {
            "y": s * w @ x**2,
            "z": w * np.sin(x),
            "e": s * np.sum(x**2),
            "rows": np.arange(len(w)),
            "status": "done",
        }
    blocks = derivatives(x, w, s)
    if endpoint == "jacobian":
        return {out: {name: blocks[out, name] for name in payload["jac_inputs"]} for out in payload["jac_outputs"]}
    if endpoint == "jacobian_vector_product":
        return {
            out: sum(np.tensordot(blocks[out, name], t, np.ndim(t)) for name, t in payload["tangent_vector"].items())
            for out in payload["jvp_outputs"]
        }
    return {
        name: sum(np.tensordot(c, blocks[out, name], np.ndim(c)) for out, c in payload["cotangent_vector"].items())
        for name in payload["vjp_inputs"]
    }


def derivatives(x: np.ndarray, w: np.ndarray, s: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """The Jacobian by output and input, each of the shape of the output and then that of the input."""
    m, n = w.shape
    rows, columns = np.eye(m), np.eye(n)
    return {
        ("y", "x"): 2 * s * w * x,
        ("y", "w"): s * rows[:, :, None] * x**2,
        ("y", "s"): w @ x**2,
        ("z", "x"): (w * np.cos(x))[:, :, None] * columns,
        ("z", "w"): rows[:, None, :, None] * columns[None, :, None, :] * np.sin(x)[None, :, None, None],
        ("z", "s"): np.zeros((m, n)),
        ("e", "x"): 2 * s * x,
        ("e", "w"): np.zeros((m, n)),
        ("e", "s"): np.sum(x**2),
    }
