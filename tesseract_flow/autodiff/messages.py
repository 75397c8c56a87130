"""What to say when a derivative cannot be had: what was asked, what there is instead, and the remedies."""

from __future__ import annotations

from collections.abc import Sequence

from tesseract_flow.autodiff.call import Call

UNKNOWN_PRIMALS = (
    "Transposing a Tesseract's derivative needs concrete primals: J(x)·t is linear in t, not in x.\n"
    "Close over the primals: jax.linear_transpose(lambda t: jax.jvp(f, (x,), (t,))[1], x)."
)


def constant_input(call: Call, path: str) -> str:
    return (
        f"Derivative requested with respect to input {path!r} of Tesseract {call.tesseract.name!r}, which its schema "
        f"does not mark differentiable.\n"
        f"Differentiable inputs here: {_listing(call.input.paths, call.input.differentiable)}.\n"
        f"Close over it or leave it out of argnums (for mixed trees: equinox.partition and eqx.filter_grad); or wrap "
        f"it in jax.lax.stop_gradient, which treats it as a constant and so changes the mathematics; or mark it "
        f"Differentiable[...] in the Tesseract's InputSchema and implement its derivative."
    )


def constant_output(call: Call, path: str) -> str:
    return (
        f"Derivative requested of output {path!r} of Tesseract {call.tesseract.name!r}, which its schema does not mark "
        f"differentiable.\n"
        f"Differentiable outputs here: {_listing(call.output.paths, call.output.differentiable)}.\n"
        f"Leave it out of the loss (drop it, or return it as auxiliary data with has_aux=True); or wrap it in "
        f"jax.lax.stop_gradient, which treats it as a constant and so changes the mathematics; or mark it "
        f"Differentiable[...] in the Tesseract's OutputSchema and implement its derivative."
    )


def second_derivative(call: Call, endpoint: str) -> str:
    return (
        f"Second derivative requested of Tesseract {call.tesseract.name!r}: its {endpoint!r} would have to be "
        "differentiated with respect to its primals, and Tesseracts do not offer that.\n"
        "Derivative endpoints are linear in their tangents and cotangents, so differentiating with respect to those "
        "works. For curvature use tesseract_flow.hvp, which differences gradients, or a quasi-Newton method such as "
        "L-BFGS."
    )


def no_room_for_batch(call: Call, path: str) -> str:
    return (
        f"vmap_method={call.options.vmap_method!r} sends the whole batch of Tesseract {call.tesseract.name!r} in one "
        f"request, and its schema has no room for another dimension in {path!r}, whose rank is fixed.\n"
        "Use vmap_method='concurrent' or 'sequential' (a request per element), or 'auto', which chooses."
    )


def _listing(paths: Sequence[str], differentiable: Sequence[bool]) -> str:
    return ", ".join(repr(p) for p, d in zip(paths, differentiable, strict=True) if d) or "(none)"
