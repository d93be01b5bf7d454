"""Runs the command line as `python -m ratrain`."""

import sys

from ratrain.cli import main

sys.exit(main())
