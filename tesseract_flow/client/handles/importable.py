"""A digest of what an interpreter would import from folders that people edit: printed, by that interpreter itself.

Run as text (`python -c`), by whatever Python a component has, so it needs nothing but the standard library. Of packages
that are installed it reads what pip renews, of all other folders on the path (PYTHONPATH, packages that are installed
for development) the size, times and place on the disk of each source.
"""

import hashlib
import os
import sys

SOURCES = (".py", ".so", ".pyd")
INSTALLED = (".dist-info", ".egg-info", ".egg-link", ".pth")


def folders():
    for finder in sys.meta_path:  # setuptools' way to install for development
        yield from getattr(sys.modules.get(getattr(finder, "__module__", "")), "MAPPING", {}).values()
    own = os.path.dirname(os.path.abspath(os.__file__))
    for folder in sys.path:
        # The standard library is the interpreter's, and the empty one is where this text is run.
        if folder and not (folder == own or (os.path.dirname(folder) == own and "packages" not in folder)):
            yield folder


def files(folder):
    if os.path.isfile(folder):
        yield folder
    elif os.path.basename(folder) in ("site-packages", "dist-packages"):
        names = os.listdir(folder) if os.path.isdir(folder) else []
        yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(INSTALLED))
    else:
        for top, inside, names in os.walk(folder):
            inside[:] = sorted(
                name
                for name in inside
                if name[0] != "."
                and name != "__pycache__"
                and not os.path.exists(os.path.join(top, name, "pyvenv.cfg"))
            )
            yield from (os.path.join(top, name) for name in sorted(names) if name.endswith(SOURCES))


digest = hashlib.sha256(repr((sys.version, sys.executable)).encode())
for folder in folders():
    for file in files(folder):
        try:
            state = os.stat(file)
        except OSError:
            continue
        what = (file, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        digest.update(repr(what).encode("utf-8", "replace"))
print(digest.hexdigest())
