"""The command `ui`: the page of `ui` in a browser, for one pipeline."""

from __future__ import annotations

import argparse
import socket
import sys
from contextlib import suppress
from typing import Any

from .input import BadInputError, port
from .pipeline import add_loading, add_model, bad_input, calibrated_of, load
from .terminal import one_line, say

_EXAMPLE = """\
example:
  %(prog)s stable-diffusion-v1-5/stable-diffusion-v1-5 --scheduler ddim

Prints the address of the page; Ctrl-C ends it.
"""


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "ui",
        help="a page in the browser: settings, both pictures, times, the plan",
        description="Serves a page that makes pictures without and with DeepCache.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_model(parser)
    add_loading(parser)
    add("--schedule", metavar="FILE", help="one that `calibrate` wrote, to choose on the page")
    add("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    add("--port", type=port, default=7860, metavar="N", help="default: 7860; 0 takes a free one")
    parser.set_defaults(run=_ui, command="ui")


def _ui(options: argparse.Namespace, command: str) -> int:
    from ..page.app import is_loopback, launch, require_gradio

    require_gradio()
    if options.schedule in ("uniform", "auto"):
        what = f"--schedule {options.schedule} is chosen on the page"
        raise BadInputError(f"{what}: give a file here")
    free = _free_port(options.host, options.port)
    with bad_input():
        calibrated = calibrated_of(options)
        pipe = load(options)
    with bad_input():
        page = launch(pipe, host=options.host, port=free, calibrated=calibrated)
    if not is_loopback(options.host):
        warning = f"warning: whoever reaches {options.host} can use this page, without a password"
        print(one_line(f"deepcache-patch ui: {warning}"), file=sys.stderr)
    with page, suppress(KeyboardInterrupt):
        say(f"{page.address} (Ctrl-C ends it)")
        page.wait()
    return 0


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
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(
            f"cannot listen on {host}, port {wanted}: {reason}; choose another --port or --host"
        ) from error
