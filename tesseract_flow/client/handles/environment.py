"""The environment of a component's own: an interpreter with what its `tesseract_requirements.txt` asks for.

tesseract-core makes it, with uv or conda as the component's `tesseract_config.yaml` says, in `.tesseract-venv` beside
the `tesseract_api.py`: once, and again when requirements, settings or its runtime change; several processes wait for
one. Here is what we add: where uv is found, a word before it takes its time, and errors in brief.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from pathlib import Path

_FOLDER = ".tesseract-venv"
_MOST_LINES = 12
_CREDENTIALS = re.compile(r"://[^/\s@]+@")
_log = logging.getLogger("tesseract_flow")


def own_python(path: Path) -> str:
    """The interpreter of the component at `path`, whose environment is made if need be.

    Raises:
        RuntimeError: it cannot be made; the message says why, in brief.
    """
    from tesseract_core.sdk import config, venv_provision
    from tesseract_core.sdk.exceptions import UserError

    beside = Path(sys.executable).with_name("uv" + (".exe" if os.name == "nt" else ""))
    # Installed with us, in an environment that nobody has activated.
    if config.get_config().uv_executable == ("uv",) and shutil.which("uv") is None and beside.is_file():
        config.update_config(uv_executable=str(beside))
    if not (path.parent / _FOLDER).exists():
        _log.warning("Making an environment for the component %s, once; that may take minutes.", path.parent.name)
    try:
        return str(venv_provision.resolve_python_executable(path))
    except (UserError, RuntimeError, OSError) as error:
        lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
        if len(lines) > _MOST_LINES:
            lines = [lines[0], "  ...", *lines[-_MOST_LINES:]]
        raise RuntimeError(_CREDENTIALS.sub("://***@", "\n".join(lines))) from None
