"""The peer's side of the gradient benchmark, run by the interpreter of the peer's own environment.

Called with the delay and the addresses of the components; prints seconds per `value_and_grad` as JSON.
"""

# pyright: reportMissingImports=false

import json
import sys
import time

import jax
import jax.numpy as jnp
from tesseract_core import Tesseract
from tesseract_jax import apply_tesseract

jax.config.update("jax_enable_x64", True)

delay, *urls = sys.argv[1:]
tesseracts = [Tesseract.from_url(url) for url in urls]


def loss(x):
    calls = [apply_tesseract(t, {"x": x * (k + 1.0), "delay": float(delay)})["y"] for k, t in enumerate(tesseracts)]
    return sum(jnp.sum(y**2) for y in calls)


x = jnp.arange(3.0)
seconds = {}
for name, fn in {"eager": jax.value_and_grad(loss), "jit": jax.jit(jax.value_and_grad(loss))}.items():
    jax.block_until_ready(fn(x))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(fn(x))
        times.append(time.perf_counter() - start)
    seconds[name] = sorted(times)[1]
print(json.dumps(seconds))
