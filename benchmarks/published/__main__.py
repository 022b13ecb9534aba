"""``python -m benchmarks.published``."""

from benchmarks.published.run import main

if __name__ == "__main__":
    raise SystemExit(main())
