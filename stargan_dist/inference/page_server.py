"""The server of the page: one address, temporary files of its own, an orderly end."""

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from stargan_dist.errors import UserError
from stargan_dist.inference.page import import_gradio
from stargan_dist.inference.page_actions import FOLDER

PORTS = 100  # tried from the given one
MAX_FILE_SIZE = "32mb"
# Of the system: the fonts of Gradio's themes come from another host.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
# Outputs have as many columns as the gallery says, or fewer where they were too narrow.
STYLE = """
.coarse img, #source img, [id^=examples_] img {image-rendering: pixelated}
#source img {width: 100%; height: 100%; object-fit: contain}
.outputs .grid-wrap {min-height: 0; max-height: none}
.outputs .grid-container {
  grid-template-rows: none; grid-auto-rows: auto;
  grid-template-columns: repeat(auto-fill, minmax(max(80px,
    (100% - (var(--grid-cols) - 1) * var(--spacing-lg)) / var(--grid-cols)), 1fr));
}
.outputs .empty {min-height: 6rem}
.outputs .caption-label {font-size: var(--text-xs); padding: 0 4px; right: 2px; bottom: 2px}
"""


@contextmanager
def temporary_files() -> Iterator[None]:
    """Let uploads and outputs be in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="stargan_dist_") as folder:
        os.environ[FOLDER] = folder
        yield


def serve(blocks: Any, host: str, port: int) -> NoReturn:
    """Serve a page until SIGINT or SIGTERM, then exit with code 0. Prints its address.

    Args:
        blocks: of `page.build`.
        host: address to listen on.
        port: the next free one is used if it is busy.

    Raises:
        UserError: the host is not one of this machine, or no port is free.
    """
    theme = import_gradio().themes.Default(primary_hue="indigo", **FONTS)
    port = free_port(host, port)
    _reach_without_proxy(host)
    blocks.launch(
        server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True,
        max_file_size=MAX_FILE_SIZE, footer_links=[], run_history=False, enable_monitoring=False,
        mcp_server=False, ssr_mode=False, pwa=False, app_kwargs={"openapi_url": None},
        theme=theme, css=STYLE,
    )  # fmt: skip
    print(f"the page is at http://{_in_url(host)}:{port}/", flush=True)
    try:
        threading.Event().wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        blocks.close(verbose=False)
    raise AssertionError("only a signal ends the wait")


def end_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process with code 0."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))


def free_port(host: str, port: int) -> int:
    """Return the first free port from the given one on. 0: any.

    Raises:
        UserError: the host is not one of this machine, or no port is free.
    """
    for candidate in range(port, min(port + PORTS, 2**16)):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.create_server((host, candidate), family=family) as server:
                return int(server.getsockname()[1])
        except OSError as error:
            last = error
            if isinstance(error, socket.gaierror):
                break
    raise UserError(f"cannot listen on {host}, port {port}: {last.strerror}") from last


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reach_without_proxy(host: str) -> None:
    """Let Gradio's check whether its server has started bypass an HTTP proxy."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = ",".join([*filter(None, [known]), "127.0.0.1", "localhost", host])
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = hosts
