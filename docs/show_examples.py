"""For mkdocs: a line that links to a script in `examples/`, and no more, becomes it, folded.

The folder is not part of the site. Where pages are read as they are, the link leads to the file.
"""

import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"^\[`(examples/\w+\.py)`\]\(\.\./\1\)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page, with each script in the place of its link."""
    return _LINK.sub(_script, markdown)


def _script(link: re.Match[str]) -> str:
    code = (_ROOT / link[1]).read_text(encoding="utf-8")
    return (
        f'<details markdown="1">\n<summary>{link[1]}</summary>\n\n'
        f"```python\n{code}```\n\n</details>"
    )
