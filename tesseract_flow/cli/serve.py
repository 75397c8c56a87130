"""`tesseract-flow serve`: components served on this machine until interrupted."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tesseract_flow.cli.arguments import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser("serve", help="serve components on this machine until interrupted")
    parser.add_argument("paths", nargs="+", type=Path, help="paths of tesseract_api.py files or their folders")
    parser.add_argument("--workers", type=int, default=1, help="processes per component (default 1)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from tesseract_flow.client import ServedTesseract, open_tesseract

    handles = [open_tesseract(path, n_workers=arguments.workers) for path in arguments.paths]
    with ThreadPoolExecutor(len(handles)) as pool:  # starting one takes seconds, so together
        for handle, name in zip(handles, pool.map(lambda handle: handle.name, handles), strict=True):
            assert isinstance(handle, ServedTesseract)
            print(f"{name}: {' '.join(handle.urls)}", flush=True)
    print("Serving until interrupted (Ctrl-C).", flush=True)
    while True:
        time.sleep(3600)
