"""`concurrent`: any JAX function with Tesseracts inside, run so that independent calls overlap."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tesseract_flow.autodiff import compiled_for_all, has_plain_outputs, informed, rehearsal, revealed
from tesseract_flow.autodiff.layout import Static
from tesseract_flow.autodiff.primitives import is_staging
from tesseract_flow.errors import Fault, InvalidAnswer, InvalidInput, OptionError
from tesseract_flow.execute.plan import Plan
from tesseract_flow.execute.planning import make_plan
from tesseract_flow.execute.run import OnFailure, run_plan
from tesseract_flow.execute.submit import AbstractSubmitter, default_submitter
from tesseract_flow.schema import what_is_lost


def concurrent(
    fn: Callable[..., Any],
    *,
    submitter: AbstractSubmitter | None = None,
    on_failure: OnFailure = "wait",
    speculative: bool = False,
) -> Concurrent:
    """`fn` with its Tesseract calls as a dataflow graph: wall time is the critical path, forward and backward.

    An outermost transformation, like `jax.jit`: write `concurrent(jax.value_and_grad(loss))`. Traced once per
    structure, shapes and static leaves; between calls everything is compiled. Arguments and results may be mixed trees:
    arrays are traced, every other leaf (a Python number too) is static and compared by type and value. Called while
    something else is tracing, it is `fn` itself.

    Args:
        fn: a pure function of trees of arrays.
        submitter: where calls go; default a pool of threads with the default retry policy.
        on_failure: after the first failure nothing more starts. `"wait"` lets calls end that run already, so that none
            runs on unseen; `"abandon"` raises at once.
        speculative: sends the pullback of a component whose only output in use is a scalar together with its `apply`,
            with the cotangent 1, and scales the result later: exact by linearity (bits may differ), and one solve less
            on the critical path. For components that do not keep residuals, on servers with a worker to spare. Sent in
            vain where the cotangent turns out to be zero.

    Raises:
        OptionError: another `on_failure`, or a `submitter` that is none.
        TypeError: `fn` cannot be called.
    """
    if not callable(fn):
        raise TypeError(f"concurrent: expected a function, such as jax.value_and_grad(loss); got {type(fn).__name__}.")
    if on_failure not in get_args(OnFailure):
        raise OptionError(f"on_failure={on_failure!r}; expected 'wait' or 'abandon'.")
    if not isinstance(submitter, AbstractSubmitter | None):
        raise OptionError(
            f"submitter={submitter!r}; expected an object such as ThreadSubmitter(), InlineSubmitter() or, inside a "
            "Prefect flow, PrefectSubmitter()."
        )
    return Concurrent(fn, submitter, on_failure, speculative)


class Concurrent:
    """What `concurrent` returns: a function that can also show its plan."""

    def __init__(
        self, fn: Callable[..., Any], submitter: AbstractSubmitter | None, on_failure: OnFailure, speculative: bool
    ):
        self.fn = fn
        self.submitter = submitter
        self.on_failure: OnFailure = on_failure
        self.speculative = speculative
        self._traces: OrderedDict[Any, _Trace] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, treedef = _flattened(args, kwargs)
        if is_staging() or any(isinstance(leaf, Tracer) for leaf in leaves):
            return self.fn(*args, **kwargs)
        key = self._key(leaves, treedef)
        with compiled_for_all():
            if key in self._traces:
                return self._run(key, leaves, treedef)
            with rehearsal():  # what tracing has to ask is not asked again by this run
                return self._run(key, leaves, treedef)

    def _run(self, key: Any, leaves: list[Any], treedef: Any) -> Any:
        trace = self._trace(key, leaves, treedef)
        # Copies of NumPy's: a call may still be under way when this one has failed, and the caller goes on.
        arrays = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves if _is_array(leaf)]
        try:
            results = run_plan(trace.plan, arrays, self.submitter or default_submitter(), self.on_failure)
        except InvalidAnswer:
            # Perhaps it contradicts what was said while tracing: the next call asks anew.
            with self._lock:
                self._traces.pop(key, None)
            raise
        return trace.output(results)

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """What a call with these arguments would run. Asks for shapes at most; no solver runs.

        But for components without `abstract_eval`, and where the function looks at a plain output that is no number:
        the function is then run once with these values.
        """
        leaves, treedef = _flattened(args, kwargs)
        with rehearsal():
            return self._trace(self._key(leaves, treedef), leaves, treedef).plan

    def _key(self, leaves: list[Any], treedef: Any) -> Any:
        signature = tuple(jax.typeof(leaf) if _is_array(leaf) else Static(leaf) for leaf in leaves)
        return treedef, signature, jax.config.jax_enable_x64  # type: ignore[attr-defined]

    def _trace(self, key: Any, leaves: list[Any], treedef: Any) -> _Trace:
        with self._lock:  # one thread traces; the others wait for its trace
            if key not in self._traces:
                self._traces[key] = _trace(self.fn, leaves, treedef, self.speculative)
                if len(self._traces) > _N_TRACES:
                    self._traces.popitem(last=False)
            self._traces.move_to_end(key)
            return self._traces[key]


_N_TRACES = 64  # a Python number that changes at every call would otherwise fill the memory with compiled functions


@dataclasses.dataclass(frozen=True)
class _Trace:
    plan: Plan
    treedef: Any
    leaves: list[Any]  # per output leaf `_TRACED` or its static value
    has_plain_outputs: bool

    def output(self, results: list[Any]) -> Any:
        remaining = iter(results)
        leaves = [jnp.asarray(next(remaining)) if leaf is _TRACED else leaf for leaf in self.leaves]
        tree = jax.tree_util.tree_unflatten(self.treedef, leaves)
        return revealed(tree) if self.has_plain_outputs else tree


_TRACED = object()


def _trace(fn: Callable[..., Any], leaves: list[Any], treedef: Any, is_speculative: bool) -> _Trace:
    out_tree: Any = None
    out_leaves: list[Any] = []

    def flat(*arrays: Any) -> list[Any]:
        nonlocal out_tree, out_leaves
        remaining = iter(arrays)
        full = [next(remaining) if _is_array(leaf) else leaf for leaf in leaves]
        args, kwargs = jax.tree_util.tree_unflatten(treedef, full)
        results, out_tree = jax.tree_util.tree_flatten(fn(*args, **kwargs))
        out_leaves = [_TRACED if _is_array(leaf) else leaf for leaf in results]
        return [leaf for leaf in results if _is_array(leaf)]

    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    # Where values must be known, the function is run as it is: a gradient with its pullbacks, one call after the other.
    closed = informed(lambda: jax.make_jaxpr(flat)(*arrays), lambda: flat(*arrays))
    tree = jax.tree_util.tree_unflatten(out_tree, out_leaves)
    return _Trace(make_plan(closed, is_speculative), out_tree, out_leaves, has_plain_outputs(tree))


def _flattened(args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
    if any(what_is_lost(leaf) is not None for leaf in leaves):
        named = jax.tree_util.tree_flatten_with_path((args, kwargs))[0]
        lost = [(jax.tree_util.keystr(path[1:]), what_is_lost(leaf)) for path, leaf in named]
        faults = [Fault(path, what, "meaning_lost") for path, what in lost if what is not None]
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise InvalidInput(f"An argument of a concurrent function cannot be used:\n{lines}", faults=faults)
    return leaves, treedef


def _is_array(leaf: Any) -> bool:
    """Whether JAX can trace it; NumPy also has arrays of text, dates and objects, which are static."""
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUMm")
