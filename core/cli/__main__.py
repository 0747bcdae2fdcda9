"""``python -m core.cli`` is ``greylag``."""

import sys

from core.cli import main

sys.exit(main())
