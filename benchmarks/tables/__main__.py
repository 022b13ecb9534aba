"""``python -m benchmarks.tables``."""

from benchmarks.tables.documents import main

if __name__ == "__main__":
    main()
