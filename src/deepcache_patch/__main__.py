"""`python -m deepcache_patch`; everything is in `command_line`."""

from __future__ import annotations

import sys

from deepcache_patch.command_line import main

if __name__ == "__main__":
    sys.exit(main())
