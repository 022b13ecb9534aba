"""How the page is served: where, to whom, and until when."""

from __future__ import annotations

import ipaddress
import time
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Any

from .app import Page, gradio


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _only_as(host: str) -> list[Any]:
    """What refuses calls under another name, as long as only this machine is served."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if not is_loopback(host):
        return []
    return [Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", host])]


class Server(AbstractContextManager["Server"]):
    """A page that is served until `close`, or until the end of a `with` block.

    Args:
        page: Served from here on.
        host: Address to listen on. There is no password.
        port: TCP port, 1 to 65535.

    Attributes:
        address: The address of the page.

    Raises:
        OSError: The port is taken.
    """

    def __init__(self, page: Page, host: str, port: int) -> None:
        gr, place = gradio(), files(__package__)
        style, script = (
            place.joinpath(name).read_text(encoding="utf-8") for name in ("app.css", "app.js")
        )
        self._page = page
        plain = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        page.blocks.queue(default_concurrency_limit=1)
        _, self.address, _ = page.blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            max_file_size="1kb",  # nothing is uploaded here
            # Or a page of elsewhere could reach this one under a name of its own (DNS rebinding).
            app_kwargs={"middleware": _only_as(host)},
            theme=gr.themes.Default(primary_hue="blue", **plain),  # no fonts of other sites
            # `css=` would rewrite the selectors.
            head=f"<style>{style}</style><script>{script}</script>",
        )

    def wait(self) -> None:
        """Returns when the page is closed; raises `KeyboardInterrupt` on Ctrl-C."""
        while self._page.blocks.is_running:
            time.sleep(0.2)

    def close(self) -> None:
        """Ends a generation that is under way, and the server."""
        self._page.close()
        self._page.blocks.close(verbose=False)

    def __exit__(self, *_: object) -> None:
        self.close()
