"""`python -m deepcache_patch`; everything is in `cli`."""

from __future__ import annotations

import sys

from deepcache_patch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
