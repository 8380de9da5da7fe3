"""``python -m featnet.cli``."""

import sys

from . import main

sys.exit(main())
