"""Serving the page until it is interrupted."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import uvicorn

from riprap.dashboard._access import is_loopback
from riprap.dashboard._app import make_app
from riprap.errors import ConfigError

MIN_TOKEN = 16  # characters
# Loopback address, and an address of another network that is reserved for documentation.
ALL_ADDRESSES = {"0.0.0.0": ("127.0.0.1", "192.0.2.1"), "::": ("::1", "2001:db8::1")}


class _Server(uvicorn.Server):
    """Server that ends the readers' streams when it is interrupted."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._end_streams()
        super().handle_exit(sig, frame)


def check_address(host: str, token: str | None) -> None:
    """Check that an address which others can reach has a token, and that a token is long enough.

    Raises:
        ConfigError: it has none, or a short one.
    """
    if token is not None and len(token) < MIN_TOKEN:
        raise ConfigError(
            f"--token has {len(token)} characters, and a short token can be guessed: give at least "
            f"{MIN_TOKEN}, such as {secrets.token_urlsafe(24)}"
        )
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines read the runs: give a --token too, such as "
            f"{secrets.token_urlsafe(24)}, or leave --host away"
        )


def address_to_open(host: str) -> str:
    """Return an address at which a server that listens at `host` answers.

    For 0.0.0.0 and ::, which stand for all addresses of this machine and open in no browser, it is
    the one that others reach, if the machine has a network.
    """
    if host not in ALL_ADDRESSES:
        return host
    loopback, elsewhere = ALL_ADDRESSES[host]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probing:
        try:
            probing.connect((elsewhere, 9))  # chooses a way out, and sends nothing
            return str(probing.getsockname()[0])
        except OSError:
            return loopback


def serve(
    sources: Sequence[str | Path],
    host: str = "127.0.0.1",
    port: int = 8642,
    token: str | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page of some runs until it is interrupted.

    Args:
        sources: folders of runs, record files, or folders below which runs appear.
        port: to listen at; 0: a free one.
        token: that each request must carry; needed where others can reach `host`.
        announce: called with the page's address once the server listens.

    Raises:
        ConfigError: others can reach `host` and there is no token, or the port is not free.
        RecordError: a source does not exist.
    """
    check_address(host, token)
    app = make_app(sources, host, token)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen at {host}, port {port} ({error.strerror}): give another --port"
            ) from error
        listening.listen(256)
        own = address_to_open(host)
        name = f"[{own}]" if ":" in own else own
        query = "" if token is None else f"?token={quote(token, safe='')}"
        announce(f"http://{name}:{listening.getsockname()[1]}/{query}")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # it would hold the token
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        with suppress(KeyboardInterrupt):  # the server has stopped then, and raises it again
            _Server(config, app.state.end_streams).run(sockets=[listening])
    finally:
        listening.close()
