"""`open_tesseract` understands what names a Tesseract, starts nothing, and says what it did not understand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tesseract_flow.client import (
    AbstractTesseract,
    CoreTesseract,
    Derive,
    DerivedTesseract,
    HttpTesseract,
    ServedTesseract,
    count_requests,
    open_tesseract,
)
from tesseract_flow.derivatives import Differences
from tesseract_flow.errors import NotServed, OptionError, Unreachable
from tesseract_flow.testing import FunctionTesseract
from tests.client.helpers import PROBE, mocked


class NotServedYet:
    """As a Tesseract of tesseract-core's `from_source` is, before it is served."""

    @property
    def openapi_schema(self):
        raise RuntimeError("you must either use it as a context manager or call .serve() before use.")

    def apply(self, inputs):
        raise RuntimeError("you must either use it as a context manager or call .serve() before use.")

    abstract_eval = apply


class Wrapped:
    """A spy that passes everything on."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("http://solver:8000", "http://solver:8000"),
        ("https://solver/fem/", "https://solver/fem"),
        ("solver:8000", "http://solver:8000"),
        ("localhost", "http://localhost"),
        ("solver:8000/fem", "http://solver:8000/fem"),
        ("me:password@solver/fem", "http://solver/fem"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
    ],
)
def test_addresses(source, url):
    handle = open_tesseract(source, label="fem")
    assert handle == HttpTesseract(source, label="fem")
    assert isinstance(handle, HttpTesseract) and handle.url == url


def test_options_of_an_address():
    headers = {"X-Project": "wing"}
    options = {"token": "t", "encoding": "json", "read_timeout": 5.0, "n_lanes": 2, "verify": False, "max_bytes": 10}
    handle = open_tesseract("http://solver", headers=headers, **options)
    assert handle == HttpTesseract("http://solver", headers=tuple(headers.items()), **options)
    assert headers == {"X-Project": "wing"}


@pytest.mark.parametrize("form", [str, Path, lambda path: os.path.relpath(path)])
@pytest.mark.parametrize("part", [PROBE, PROBE.parent], ids=["file", "folder"])
def test_paths(form, part):
    handle = open_tesseract(form(part), n_workers=2)
    assert handle == ServedTesseract(PROBE, n_workers=2)
    assert hash(handle) == hash(ServedTesseract(PROBE, n_workers=2))
    assert handle != open_tesseract(PROBE)


def test_a_folder_wins_over_a_host_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "solver").mkdir()
    (tmp_path / "solver" / "tesseract_api.py").touch()
    monkeypatch.chdir(tmp_path)
    assert open_tesseract("solver") == ServedTesseract(tmp_path / "solver" / "tesseract_api.py")
    assert isinstance(open_tesseract("http://solver"), HttpTesseract)


@pytest.mark.parametrize("source", ["missing/tesseract_api.py", "tesseract_api.py", "./missing", Path("missing")])
def test_files_that_are_not_there(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unreachable, match="no such file"):
        open_tesseract(source)


def test_a_mistyped_folder_is_no_host(tmp_path, monkeypatch):
    (tmp_path / "ohm").mkdir()
    (tmp_path / "ohm" / "tesseract_api.py").touch()
    monkeypatch.chdir(tmp_path)
    for source in ("ohmm", ["ohmm", "http://solver"]):
        with pytest.raises(
            Unreachable, match=r"no such folder in .*Did you mean 'ohm'\? If it is a host, .*http://ohmm:8000"
        ):
            open_tesseract(source)
    assert isinstance(open_tesseract("localhost"), HttpTesseract)


def test_a_folder_without_a_component(tmp_path):
    with pytest.raises(Unreachable, match=r"holds no tesseract_api\.py"):
        open_tesseract(tmp_path)


@pytest.mark.parametrize("source", ["ftp://solver", "http://", "http://solver:port", ""])
def test_what_is_no_address(source):
    with pytest.raises(Unreachable, match="http://host:8000"):
        open_tesseract(source)


@pytest.mark.parametrize(
    ("source", "option", "meant"),
    [
        ("http://me:s3cr3t@solver", "tokn", "token"),
        ("http://solver", "timeout", "read_timeout"),
        (PROBE, "workers", "n_workers"),
        ("http://solver", "derives", "derive"),
    ],
)
def test_unknown_options(source, option, meant):
    with pytest.raises(TypeError, match=f"{option!r}.*Did you mean {meant!r}") as caught:
        open_tesseract(source, **{option: "s3cr3t"})  # type: ignore[arg-type]
    assert "s3cr3t" not in str(caught.value)
    assert "label" in str(caught.value)  # the ones there are


def test_options_with_useless_values():
    with pytest.raises(OptionError, match="n_lanes"):
        open_tesseract("http://solver", n_lanes=0)
    with pytest.raises(OptionError, match="n_workers"):
        open_tesseract(PROBE, n_workers=0)


def test_handles_pass_through():
    handle: AbstractTesseract = mocked().handle()
    assert open_tesseract(handle) is handle
    with pytest.raises(TypeError, match=r"\['token'\] come too late"):
        open_tesseract(handle, token="t")


@pytest.mark.parametrize(
    ("option", "settings"),
    [
        (True, Derive()),
        ("exact", Derive()),
        ("central", Derive(Differences("central"))),
        ("forward", Derive(Differences("forward"))),
        ("spsa", Derive(Differences("spsa"))),
        (Differences("forward", noise=1e-6), Derive(Differences("forward", noise=1e-6))),
        (Derive(max_requests=None), Derive(max_requests=None)),
    ],
)
def test_derived_endpoints_of_every_source(option, settings, in_process):
    plain = HttpTesseract("http://solver", label="fem")
    assert open_tesseract("http://solver", label="fem", derive=option) == DerivedTesseract(plain, settings)
    assert open_tesseract(PROBE, derive=option) == DerivedTesseract(ServedTesseract(PROBE), settings)
    assert open_tesseract(in_process, derive=option) == DerivedTesseract(CoreTesseract(in_process), settings)
    assert open_tesseract(plain, derive=option) == DerivedTesseract(plain, settings)
    # Other settings replace the old ones, and none leave them as they are.
    before = open_tesseract(plain, derive=Derive(max_requests=7))
    assert open_tesseract(before, derive=option) == DerivedTesseract(plain, settings)
    assert open_tesseract(before) is before


@pytest.mark.parametrize("option", [None, False])
def test_nothing_is_derived_unasked(option):
    handle = HttpTesseract("http://solver")
    assert open_tesseract(handle, derive=option) is handle
    assert open_tesseract("http://solver", derive=option) == handle


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("centrall", "expected True or 'exact'.*Did you mean 'central'"),
        (7, "derive is 7; expected"),
        (["central"], "expected True or 'exact'"),
    ],
)
def test_derive_options_without_sense(option, message):
    with pytest.raises(OptionError, match=message):
        open_tesseract("http://solver", derive=option)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"differences": "central"}, r"Derive\.differences is 'central'; expected a Differences"),
        ({"max_requests": 0}, r"Derive\.max_requests is 0"),
        ({"max_requests": True}, r"Derive\.max_requests is True"),
        ({"n_in_flight": 2.5}, r"Derive\.n_in_flight is 2\.5"),
        ({"measure_noise": True}, "takes differences="),
        ({"measure_noise": True, "differences": Differences(noise=1e-3)}, "without a noise of their own"),
    ],
)
def test_derive_settings_without_sense(settings, message):
    with pytest.raises(OptionError, match=message):
        Derive(**settings)


def test_a_handle_takes_a_label(in_process):
    """So a factory that labels what it opens can be given handles, in a test."""
    function = FunctionTesseract(lambda i: {"y": i["x"]}, {"x": np.ones(2)}, name="fn")
    sources = (
        function,
        in_process,
        "http://solver",
        PROBE,
        ["http://a", "http://b"],
        open_tesseract(function, cache=True),
    )
    for source in sources:
        handle = open_tesseract(source, cache=True, derive=True, max_in_flight=3)
        named = open_tesseract(handle, label="fem")
        assert (named.name, named) == ("fem", open_tesseract(handle, label="fem"))
        assert hash(named) == hash(open_tesseract(handle, label="fem"))
        assert named != handle and type(named) is type(handle)
        assert named.labelled(None) == handle.labelled(None)
    with pytest.raises(TypeError, match=r"\['token'\] come too late"):
        open_tesseract(function, label="fem", token="t")
    with count_requests() as counts:
        open_tesseract(function, label="fem").apply({"x": np.ones(2)})
    assert dict(counts) == {"fem.apply": 1}
    assert function.name == "fn"


def test_a_limit_holds_for_all_labels(in_process):
    one, other = (open_tesseract(in_process, max_in_flight=2, label=label) for label in ("a", "b"))
    assert one != other
    assert one._places is other._places  # type: ignore[attr-defined]


def test_handle_of_a_served_component_can_still_be_stopped():
    handle = open_tesseract(PROBE, derive=True)
    handle.stop()  # type: ignore[attr-defined]
    assert handle.logs() == ""  # type: ignore[attr-defined]
    assert open_tesseract("http://solver", n_lanes=3, derive=True).n_lanes == 3


def test_a_tesseract_of_tesseract_core(in_process):
    assert open_tesseract(in_process) == CoreTesseract(in_process)
    assert open_tesseract(in_process, label="fem").name == "fem"
    with pytest.raises(TypeError, match="token"):
        open_tesseract(in_process, token="t")


def test_a_tesseract_that_is_not_served_yet():
    handle = open_tesseract(NotServedYet())  # type: ignore[arg-type]
    assert repr(handle) == "CoreTesseract(tesseract)"
    with pytest.raises(NotServed, match="with tesseract"):
        handle.apply({})
    with pytest.raises(NotServed, match="with tesseract"):
        _ = handle.schema


def test_a_spy_around_a_tesseract(in_process):
    handle = open_tesseract(Wrapped(in_process))  # type: ignore[arg-type]
    assert isinstance(handle, CoreTesseract) and handle.schema == CoreTesseract(in_process).schema


@pytest.mark.parametrize("source", [None, 7, b"http://solver", {"http://solver"}, object(), {"url": "solver"}])
def test_what_is_no_source(source):
    with pytest.raises(TypeError, match=f"got {type(source).__name__}"):
        open_tesseract(source)


def test_opening_asks_nobody(local_server):
    with count_requests() as counts:
        open_tesseract(local_server.url)
        repr(open_tesseract(PROBE))
    assert local_server.n_connections == 0 and counts.n_total == 0
