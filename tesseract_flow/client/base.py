"""What every handle to a Tesseract can do, whatever carries its requests.

One abstract method moves a request (`request`); everything else here is written on top of it, so that HTTP, in-process,
served and test handles differ in transport alone. Trees in and out are nested dicts and lists with NumPy arrays at the
array leaves: no JAX here, because these methods run inside JAX's host callbacks.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tesseract_flow.client.sending import require_whole
from tesseract_flow.errors import EndpointNotFound, InvalidAnswer, NonFiniteAnswer, OptionError
from tesseract_flow.schema import TesseractSchema, answer_faults

Endpoint = Literal["apply", "abstract_eval", "jacobian", "jacobian_vector_product", "vector_jacobian_product"]
GENERIC_NAMES = frozenset({"", "Tesseract"})  # what tesseract-core calls a component without a config
_MOST_FAULTS = 20  # lines of a message
Tree = Any  # nested dict / list of arrays and plain values, as the protocol has it


_hearers: list[Callable[[type[AbstractTesseract]], object]] = []


class AbstractTesseract(abc.ABC):
    """A handle to one Tesseract. Handles are values: equal handles reach the same component.

    Subclasses give `name`, `schema`, `request`, equality and a hash; the rest follows.

    Attributes:
        n_lanes: calls that one caller keeps in flight at once.
        build: what else, beside name, version and schema, tells builds of the component apart. None: nothing does that
            another process could see.
    """

    n_lanes: int = 8
    build: str | None = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for hear in _hearers:
            hear(cls)

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What people call it, in task names, plots and messages."""

    @property
    @abc.abstractmethod
    def schema(self) -> TesseractSchema:
        """The component's schema, read once."""

    def read_schema(self) -> TesseractSchema:
        """The schema as the component says it now, whatever was remembered: whether it can be asked, and what it is."""
        return self.schema

    def refresh(self) -> None:  # noqa: B027  (most have nothing to do)
        """Ask again for the schema where somebody else may have taken the place of who told it: a server that was
        started again, perhaps with another version of the component. Costs nothing where that cannot be."""

    def labelled(self, label: str | None) -> AbstractTesseract:
        """A handle to the same component that is called `label`; None: by the component's own name."""
        raise OptionError(f"{self!r} is called {self.name!r}, and takes no label={label!r}.")

    @property
    def anchor(self) -> object:
        """What lives as long as the component is in use, through this handle or an equal one.

        What is remembered of a component hangs on it by a weak reference. Here the handle; the connections of a server,
        where equal handles share them.
        """
        return self

    @property
    def known_schema(self) -> TesseractSchema | None:
        """The schema, if it can be told without a question to the component."""
        return self.schema

    def elsewhere(self) -> AbstractTesseract:
        """A handle to the same component for another process of this machine: by address where this process serves it.

        Raises:
            NotServed: no other process can reach it.
        """
        return self

    @abc.abstractmethod
    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        """Send one request and return its decoded answer.

        Arrays of the payload are not written into and not kept, and those of the answer belong to the caller alone.

        Args:
            endpoint: the operation; that the component has it is the caller's care (`require`).
            payload: the request body, with arrays where the protocol has encoded arrays.
            run_id: names the server's output folder of this call; made up when missing.
        """

    def require(self, endpoint: Endpoint) -> None:
        """Raise `EndpointNotFound` unless the component offers `endpoint`."""
        if endpoint not in self.schema.endpoints:
            from tesseract_flow.client.deriving.routes import advice  # the way there is long, and hardly ever gone

            have = ", ".join(sorted(self.schema.endpoints - {"health"}))
            derived = advice(endpoint, self.schema.endpoints)
            raise EndpointNotFound(
                f"Tesseract {self.name!r} has no endpoint {endpoint!r}; it has: {have}.\n"
                + (f"{derived}. Or implement" if derived else "Implement")
                + f" {endpoint!r} in its tesseract_api.py and rebuild it, or formulate the loss without it.",
                tesseract=repr(self),
                endpoint=endpoint,
            )

    def apply(self, inputs: Tree, *, run_id: str | None = None) -> Tree:
        """Outputs at `inputs`."""
        self.require("apply")
        return self._asked("apply", {"inputs": inputs}, run_id)

    def abstract_eval(self, abstract_inputs: Tree) -> Tree:
        """Shapes and dtypes of the outputs; arrays are `{"shape": [...], "dtype": "..."}` on both sides."""
        self.require("abstract_eval")
        return self.request("abstract_eval", {"inputs": abstract_inputs})

    def jacobian(
        self, inputs: Tree, jac_inputs: Sequence[str], jac_outputs: Sequence[str], *, run_id: str | None = None
    ) -> dict[str, dict[str, Any]]:
        """`{output path: {input path: array}}`, each of shape output shape + input shape."""
        self.require("jacobian")
        payload = {"inputs": inputs, "jac_inputs": list(jac_inputs), "jac_outputs": list(jac_outputs)}
        answer = self._asked("jacobian", payload, run_id)
        self._expect_paths("jacobian", answer, jac_outputs)
        for path in jac_outputs:
            self._expect_paths("jacobian", answer[path], jac_inputs)
        return answer

    def jacobian_vector_product(
        self,
        inputs: Tree,
        jvp_inputs: Sequence[str],
        jvp_outputs: Sequence[str],
        tangent_vector: Mapping[str, Any],
        *,
        run_id: str | None = None,
    ) -> dict[str, Any]:
        """The pushforward J·t: `{output path: array}` from `{input path: tangent}`."""
        self.require("jacobian_vector_product")
        payload = {
            "inputs": inputs,
            "jvp_inputs": list(jvp_inputs),
            "jvp_outputs": list(jvp_outputs),
            "tangent_vector": dict(tangent_vector),
        }
        answer = self._asked("jacobian_vector_product", payload, run_id)
        self._expect_paths("jacobian_vector_product", answer, jvp_outputs)
        return answer

    def vector_jacobian_product(
        self,
        inputs: Tree,
        vjp_inputs: Sequence[str],
        vjp_outputs: Sequence[str],
        cotangent_vector: Mapping[str, Any],
        *,
        run_id: str | None = None,
    ) -> dict[str, Any]:
        """The pullback Jᵀ·c: `{input path: array}` from `{output path: cotangent}`."""
        self.require("vector_jacobian_product")
        payload = {
            "inputs": inputs,
            "vjp_inputs": list(vjp_inputs),
            "vjp_outputs": list(vjp_outputs),
            "cotangent_vector": dict(cotangent_vector),
        }
        answer = self._asked("vector_jacobian_product", payload, run_id)
        self._expect_paths("vector_jacobian_product", answer, vjp_inputs)
        return answer

    def _asked(self, endpoint: Endpoint, payload: Mapping[str, Any], run_id: str | None) -> Tree:
        require_whole(self, endpoint, payload)
        return self.request(endpoint, payload, run_id=run_id)

    def _expect_paths(self, endpoint: Endpoint, answer: Any, paths: Sequence[str]) -> None:
        got = set(answer) if isinstance(answer, Mapping) else set()
        if missing := [path for path in paths if path not in got]:
            raise InvalidAnswer(
                f"Tesseract {self.name!r} answered {endpoint!r} without {', '.join(map(repr, missing))}; "
                f"it sent {', '.join(map(repr, sorted(got))) or type(answer).__name__}.\n"
                f"This is a fault in the component's {endpoint!r}: it must return every path it is asked for.",
                tesseract=repr(self),
                endpoint=endpoint,
            )

    def check_answer(self, endpoint: Endpoint, payload: Mapping[str, Any], answer: Tree) -> None:
        """Refuse an answer that cannot be one to this question. Handles to what is outside of our code do with each.

        Raises:
            InvalidAnswer: it does not fit the schema, or not the question.
            NonFiniteAnswer: null in place of a plain float.
        """
        schema = self.known_schema
        if schema is None or not (faults := answer_faults(schema, endpoint, payload, answer)):
            return
        lines = "\n".join(f"  {fault}" for fault in faults[:_MOST_FAULTS])
        more = f"\n  and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        is_finite = all(fault.kind != "not_finite" for fault in faults)
        raise (InvalidAnswer if is_finite else NonFiniteAnswer)(
            f"{endpoint!r} of Tesseract {self.name!r}: the answer does not fit the question and the component's own "
            f"schema:\n{lines}{more}\n"
            f"Nothing of it is used or kept. Look at {endpoint!r} in the component's tesseract_api.py.",
            tesseract=repr(self),
            endpoint=endpoint,
        )


def on_each_kind(hear: Callable[[type[AbstractTesseract]], object]) -> None:
    """Call `hear` with each class of handles, those that are there and those that are imported later."""
    _hearers.append(hear)
    found = AbstractTesseract.__subclasses__()
    while found:
        kind = found.pop()
        found += kind.__subclasses__()
        hear(kind)


class ByFields:
    """A dataclass that is copied and pickled by its fields; what it holds besides, such as connections, stays here."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def labelled(self, label: str | None) -> Any:
        return dataclasses.replace(self, label=label)  # type: ignore[type-var]
