"""Installs the wheel into an environment that has nothing else, and runs README's example in it.

    python .ci/wheel.py dist .venv/wheel

First with what the wheel itself asks for, on a pipeline that makes pictures without words; then
with transformers, on Stable Diffusion. Both are tiny, random, and made of diffusers' own classes:
`.ci/three_lines.py`. Needs no more than Python; says what the wheel holds, and what happened.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 400_000

#: All that a wheel of this package is made of.
SUFFIXES = {".py", ".typed", ".html", ".css", ".js"}

#: What is no module, and is missed only when it is used.
DATA = {
    path.relative_to(ROOT / "src").as_posix()
    for path in (ROOT / "src" / "deepcache_patch").rglob("*.*")
    if path.suffix in SUFFIXES - {".py"}
}


def main(folder: str, environment: str) -> None:
    """Check the only wheel in the folder; the environment is made anew."""
    (wheel,) = Path(folder).glob("*.whl")
    check_contents(wheel)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes", flush=True)
    run(sys.executable, "-m", "venv", "--clear", environment)
    python = Path(environment, "bin", "python").absolute()
    for package, *options in ((wheel,), ("transformers", "--text")):
        # Isolated: neither finds the sources, wherever PYTHONPATH leads.
        constraints = ROOT / "constraints.txt"
        run(python, "-I", "-m", "pip", "install", "--quiet", "--constraint", constraints, package)
        run(python, "-I", ROOT / ".ci" / "three_lines.py", *options)


def check_contents(wheel: Path) -> None:
    """Check that it is small, and that there is nothing in it but the package.

    Raises:
        SystemExit: If it is not; the message names what is wrong.
    """
    if wheel.stat().st_size >= MOST_BYTES:
        sys.exit(f"{wheel.name} has {wheel.stat().st_size:,} bytes, {MOST_BYTES:,} are too many")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        description = files.read(metadata).decode()
    about = metadata.partition("/")[0]
    for name in names:
        known = name.startswith(f"{about}/") or Path(name).suffix in SUFFIXES
        if not known or name.partition("/")[0] not in ("deepcache_patch", about):
            sys.exit(f"{wheel.name} holds {name}, which is no part of the package")
    if missing := DATA - set(names):
        sys.exit(f"{wheel.name} lacks {', '.join(sorted(missing))}")
    for link in ("](docs/", "](benchmarks/"):
        if link in description:
            sys.exit(f"the description of {wheel.name} has a link into the repository: {link}…)")


def run(*command: str | Path) -> None:
    """Run a command.

    Raises:
        SystemExit: If it fails, with its exit code.
    """
    status = subprocess.run([*map(str, command)]).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
