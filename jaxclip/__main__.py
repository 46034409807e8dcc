"""``python -m jaxclip``."""

import sys

from jaxclip.cli import main

sys.exit(main())
