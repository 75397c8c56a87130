"""Name and version of a component in this process, which its configuration says and its schema does not."""

import shutil

import pytest
from tesseract_core import Tesseract

from tesseract_flow.client import open_tesseract
from tests.client.helpers import PROBE


def opened(folder, config):
    folder.mkdir()
    shutil.copy(PROBE, folder)
    if config is not None:
        (folder / "tesseract_config.yaml").write_text(config)
    return open_tesseract(Tesseract.from_tesseract_api(folder / PROBE.name)).schema


@pytest.mark.parametrize("version", ["1", "2.0"])
def test_the_configuration_beside_the_code_says_name_and_version(tmp_path, version):
    schema = opened(tmp_path / "wing", f'name: wing\nversion: "{version}"\n')
    assert (schema.name, schema.version) == ("wing", version)


@pytest.mark.parametrize("config", [None, "", "- a list", "name: [", "version: 3"], ids=str)
def test_where_it_says_nothing_the_schema_counts(tmp_path, config):
    assert opened(tmp_path / "wing", config).name == "Tesseract"
