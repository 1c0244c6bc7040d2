"""`python -m sdvideo_core`, the same as the command `sdvideo`."""

import sys

from .cli import main

sys.exit(main())
