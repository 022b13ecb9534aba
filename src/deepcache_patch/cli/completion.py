"""The command `completion`: the script by which a shell asks what may come next."""

from __future__ import annotations

import click

from . import options
from .mistakes import BadInputError
from .names import COMPLETION_VARIABLE, PROGRAM
from .terminal import say

_EXAMPLES = """\
examples:
  deepcache-patch completion bash >> ~/.bashrc
  deepcache-patch completion zsh >> ~/.zshrc
  deepcache-patch completion fish > ~/.config/fish/completions/deepcache-patch.fish

The next shell that is started completes.
"""


@options.command(_EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="SHELL")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints what makes a shell complete commands, options, names and files.

    SHELL is bash, zsh or fish.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise BadInputError(f"this version of click completes nothing in {shell}")
    say(kind(context.find_root().command, {}, PROGRAM, COMPLETION_VARIABLE).source())
