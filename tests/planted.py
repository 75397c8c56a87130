"""A secret that tests plant, and the search for it in whatever was written."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

# Of characters that a URL has to escape, so that the escaped form is another one.
SECRET = "pl4nted/s3cret=by;tests"
_LARGEST = 64 * 2**20  # bytes; what is larger is arrays


def forms(secret: str = SECRET) -> frozenset[bytes]:
    """How a secret may be written: as it is, escaped for a URL or for JSON, in base64 wherever it begins."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), quote(secret).encode(), raw.replace(b"/", b"\\/")}
    for before in range(3):
        text = base64.b64encode(bytes(before) + raw)
        # Without the letters that depend on what stands before and after it.
        inner = text[(4 * before + 2) // 3 : len(text) - 4]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return frozenset(found)


def is_in(data: bytes | str, secret: str = SECRET) -> bool:
    data = data.encode() if isinstance(data, str) else data
    return any(form in data for form in forms(secret))


def files_with_it(folder: Path, secret: str = SECRET) -> Iterator[str]:
    """All files below a folder that have it in their name or contents, also while somebody tidies up."""
    wanted = forms(secret)
    for here, _, names in os.walk(folder):
        for name in names:
            path = Path(here, name)
            try:
                if not path.is_file() or path.is_symlink() or path.stat().st_size > _LARGEST:
                    continue
                data = path.read_bytes()
            except OSError:
                continue
            if any(form in data or form in str(path).encode() for form in wanted):
                yield str(path)
