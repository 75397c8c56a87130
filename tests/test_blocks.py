"""The endpoint block: an address with credentials that stay where they belong."""

import base64

import pytest
from pydantic import SecretStr, ValidationError

from tesseract_flow.blocks import TesseractEndpoint
from tesseract_flow.client import HttpTesseract, open_tesseract


def test_block_opens_the_tesseract_with_its_credentials_and_shows_none():
    block = TesseractEndpoint(url="http://solver:8000", label="fem", token=SecretStr("t0k3n"), read_timeout=60.0)
    handle = block.open()
    assert handle == HttpTesseract("http://solver:8000", label="fem", token="t0k3n", read_timeout=60.0)
    assert "t0k3n" not in repr(handle) + repr(block) + str(block) + block.model_dump_json()


def test_block_may_derive_endpoints_keep_answers_and_bound_requests(tmp_path):
    options = {"derive": "central", "cache": str(tmp_path / "answers"), "max_in_flight": 2}
    options["limit_folder"] = str(tmp_path / "licences")
    handle = TesseractEndpoint(url="http://solver:8000", **options).open()
    assert handle == open_tesseract("http://solver:8000", **options)
    assert handle != HttpTesseract("http://solver:8000")


def test_block_may_leave_the_bound_to_what_the_server_refuses():
    block = TesseractEndpoint(url="http://solver:8000", max_in_flight="auto")
    assert block.open() == open_tesseract("http://solver:8000", max_in_flight="auto")
    with pytest.raises(ValidationError):
        TesseractEndpoint(url="http://solver:8000", max_in_flight=0)


def test_basic_authentication_becomes_a_header():
    handle = TesseractEndpoint(url="http://solver:8000", user="ann", password=SecretStr("s3cret")).open()
    assert isinstance(handle, HttpTesseract)
    ((name, value),) = handle.headers
    assert name == "Authorization"
    assert base64.b64decode(value.removeprefix("Basic ")) == b"ann:s3cret"
    assert "s3cret" not in repr(handle)


def test_block_is_stored_with_its_secrets_and_found_by_settings_of_a_flow(prefect_harness):
    from tesseract_flow.flows.check import resolved

    TesseractEndpoint(url="http://solver:8000", token=SecretStr("t0k3n")).save("solver")
    assert resolved("block:solver") == HttpTesseract("http://solver:8000", token="t0k3n")
    assert resolved("http://solver:8000") == "http://solver:8000"
    assert resolved(3) == 3
