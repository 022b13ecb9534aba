"""The command `ui`: serves the page of `page.app`, for one pipeline."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import click

from . import kinds, options
from .mistakes import BadInputError, bad_input, reason_of
from .names import PROGRAM, SCHEDULES
from .request import PipelineRequest, require_own_scheduler, schedule_given
from .terminal import complain, import_word, say

_EXAMPLES = """\
example:
  deepcache-patch ui stable-diffusion-v1-5/stable-diffusion-v1-5 --scheduler ddim

Prints the address of the page; Ctrl-C ends it.
"""


@options.command(_EXAMPLES)
@options.model
@options.loading
@options.schedule
@click.option(
    "--host", default="127.0.0.1", help="address to listen on (default: only this machine)"
)
@click.option(
    "--port",
    type=kinds.port,
    default=7860,
    metavar="N",
    help="default: 7860; 0 takes a free one",
)
def ui(*, schedule: str, host: str, port: int, **loading: Any) -> None:
    """Serves a page that makes pictures without and with the helper.

    It begins with the schedule of --schedule; others can be chosen.
    """
    asked = PipelineRequest(**loading)
    asked.check()
    import_word()
    from ..page.app import Page, require_gradio
    from ..page.serving import Server, is_loopback

    require_gradio()
    free = _free_port(host, port)
    with bad_input():
        begin = schedule_given(schedule)
        file = None if schedule in SCHEDULES else schedule
        asked.check_schedule(begin, schedule)
        pipe = asked.load()
        require_own_scheduler(pipe, begin, schedule)
        server = Server(Page(pipe, schedule=begin, schedule_file=file), host, free)
    if not is_loopback(host):
        warning = f"warning: whoever reaches {host} can use this page, without a password"
        complain(f"{PROGRAM} ui: {warning}")
    with server, suppress(KeyboardInterrupt):
        say(f"{server.address} (Ctrl-C ends it)")
        server.wait()


def _free_port(host: str, wanted: int) -> int:
    """Finds out before a model is loaded whether the page can be served there."""
    if ":" in host:
        raise BadInputError(f"--host {host}: give an IPv4 address, or a name")
    try:
        family = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, wanted))
            return int(probe.getsockname()[1])
    except (OSError, UnicodeError) as error:
        reason = reason_of(error)
        raise BadInputError(
            f"cannot listen on {host}, port {wanted}: {reason}; choose another --port or --host"
        ) from error
