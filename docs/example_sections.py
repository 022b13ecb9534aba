"""For mkdocstrings: `Example:` in a docstring is the section that griffe knows as `Examples:`."""

from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the section while docstrings are collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Look at one class, function or attribute."""
        if obj.docstring is not None:
            lines = obj.docstring.value.splitlines()
            renamed = ["Examples:" if line == "Example:" else line for line in lines]
            obj.docstring.value = "\n".join(renamed)
