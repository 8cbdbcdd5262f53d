"""Who may read the page: the check of hosts, methods and tokens before any route."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.responses import PlainTextResponse, RedirectResponse, Response

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
COOKIE = "riprap_token"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_App = Callable[[Any, Any, Any], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Middleware: refuses foreign hosts, methods that write, and readers without the token.

    A page of another site can reach a server on this machine by a name that it makes resolve to
    it; the browser then sends that name as the host, and the request is refused.

    Args:
        app: the application behind it.
        host: address at which the server listens.
        token: that every request must carry: as `Authorization: Bearer`, as a cookie, or as
            `?token=`; None: none is asked for.
    """

    def __init__(self, app: _App, host: str, token: str | None) -> None:
        self.app, self.token = app, token
        self.names = {*LOOPBACK, host.lower()}
        self.any_address = False
        if not is_loopback(host):
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
            self.any_address = host in ("0.0.0.0", "::")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", []))
                names = {key for key, _ in given}
                own = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = message | {"headers": given + [p for p in own if p[0] not in names]}
            await send(message)

        answer = self._refusal(scope)
        await (answer or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Any) -> Response | None:
        headers: dict[str, list[str]] = {}
        for key, value in scope["headers"]:
            headers.setdefault(key.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            text = "This host name is not one of this server: open the address that it printed."
            return PlainTextResponse(text, 421)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("The page only reads.", 405, {"Allow": "GET, HEAD"})
        if self.token is None:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        asked = [value for key, value in query if key == "token"]
        if asked and scope["path"] == "/" and self._is_token(asked[0]):
            rest = [pair for pair in query if pair[0] != "token"]  # keep it out of the history
            answer = RedirectResponse("/" + (f"?{urlencode(rest)}" if rest else ""), 303)
            answer.set_cookie(COOKIE, _digest(self.token), httponly=True, samesite="strict")
            return answer
        if any(map(self._is_token, [*asked, *_bearers(headers)])) or any(
            hmac.compare_digest(own.encode(), _digest(self.token).encode())
            for own in _cookies(headers)
        ):
            return None
        return PlainTextResponse(
            "A token is needed: open the address with ?token=… that the server's owner has.",
            401,
            {"WWW-Authenticate": "Bearer"},
        )

    def _is_own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.strip("[]").lower().rstrip(".")
        if name in self.names:
            return True
        if not self.any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _is_token(self, text: str) -> bool:
        assert self.token is not None
        return hmac.compare_digest(_digest(text).encode(), _digest(self.token).encode())


def _digest(token: str) -> str:
    """Return what the cookie holds: not the token itself, and of the same length for each."""
    return hashlib.sha256(b"riprap dashboard\0" + token.encode("utf-8", "replace")).hexdigest()


def _bearers(headers: dict[str, list[str]]) -> list[str]:
    texts = headers.get("authorization", [])
    return [text[7:].strip() for text in texts if text[:7].lower() == "bearer "]


def _cookies(headers: dict[str, list[str]]) -> list[str]:
    found = []
    for text in headers.get("cookie", []):
        try:
            cookie = SimpleCookie(text)
        except CookieError:
            continue
        if COOKIE in cookie:
            found.append(cookie[COOKIE].value)
    return found
