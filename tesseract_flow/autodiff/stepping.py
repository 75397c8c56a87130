"""How far to step for a difference, in traced code; on the host `derivatives.Differences` does the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def speed(x: Any, direction: Any) -> Any:
    """The largest |v_i| / s_i over two trees, and 1 if there is none: how fast the fastest entry leaves its scale.

    s_i = max(|x_i|, the array's largest magnitude up to 1). A step of `noise**p / speed` then moves no entry by more
    than `noise**p` of its scale, with p = 1/3 for central differences and 1/2 for forward ones.

    Source: J. E. Dennis and R. B. Schnabel, Numerical Methods for Unconstrained Optimization (1983), section 5.4.
    """

    def of(a: Any, t: Any) -> Any:
        return jnp.max(jnp.abs(t) / scale(a), initial=0.0)

    speeds = jax.tree_util.tree_leaves(jax.tree_util.tree_map(of, x, direction))
    dtype = max((s.dtype for s in speeds), key=lambda d: jnp.finfo(d).bits)
    fastest = jnp.max(jnp.stack([s.astype(dtype) for s in speeds]))
    return jnp.where(fastest > 0.0, fastest, jnp.ones((), dtype))


def scale(x: Any, typical: Any = None) -> Any:
    """The magnitude of each entry that counts as usual."""
    magnitude = jnp.abs(x)
    if typical is None:
        largest = jnp.max(magnitude, initial=0.0)
        typical = jnp.where(largest > 0.0, jnp.minimum(largest, 1.0), 1.0)
    return jnp.maximum(magnitude, jnp.asarray(typical, magnitude.dtype))


def moved(x: Any, step: Any, direction: Any) -> Any:
    """A tree, some steps along a direction away."""
    return jax.tree_util.tree_map(lambda a, t: a + (step * t).astype(a.dtype), x, direction)


def real(dtype: Any) -> Any:
    """The dtype of magnitudes."""
    return jnp.finfo(dtype).dtype
