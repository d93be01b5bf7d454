"""`python -m ratrain` is `ratrain`."""

import sys

from ratrain.cli import main

sys.exit(main())
