"""The peer's side of gradients and of `vmap`, run by the interpreter of the peer's own environment.

`gradient DELAY REPEAT URL...`: seconds per `value_and_grad` over independent components, eager and compiled.
`vmap DELAY REPEAT URL`: seconds per `vmap` of four calls. Prints JSON.
"""

# pyright: reportMissingImports=false

import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from tesseract_core import Tesseract
from tesseract_jax import apply_tesseract

jax.config.update("jax_enable_x64", True)


def seconds_of(fn, x, repeat):
    jax.block_until_ready(fn(x))
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(fn(x))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gradient(delay, repeat, urls):
    tesseracts = [Tesseract.from_url(url) for url in urls]

    def loss(x):
        calls = [apply_tesseract(t, {"x": x * (k + 1.0), "delay": delay})["y"] for k, t in enumerate(tesseracts)]
        return sum(jnp.sum(y**2) for y in calls)

    fn, x = jax.value_and_grad(loss), jnp.arange(3.0)
    return {"eager": seconds_of(fn, x, repeat), "jit": seconds_of(jax.jit(fn), x, repeat)}


def vmap(delay, repeat, urls):
    tesseract = Tesseract.from_url(urls[0])

    def double(x):
        return apply_tesseract(tesseract, {"x": x, "delay": delay}, vmap_method="sequential")["y"]

    return {"sequential": seconds_of(jax.vmap(double), jnp.arange(12.0).reshape(4, 3), repeat)}


what, delay, repeat, *urls = sys.argv[1:]
print(json.dumps({"gradient": gradient, "vmap": vmap}[what](float(delay), int(repeat), urls)))
