"""`python -m tesseract_flow`: the command line without the entry point."""

import sys

from tesseract_flow.cli import main

sys.exit(main())
