"""The page as an ASGI application: static files, views as JSON, and changes as they come."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from riprap._glossary import WORDS
from riprap._text import escape_control_chars
from riprap.dashboard._access import Access
from riprap.dashboard._details import describe_alert, describe_probes
from riprap.dashboard._follower import Follower
from riprap.dashboard._pages import PAGE_POLICY, pages_of
from riprap.dashboard._runs import Runs
from riprap.dashboard._snapshot import opened
from riprap.errors import RecordError
from riprap.record import Reader

POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0  # between looks for new runs
ALIVE_SECONDS = 15.0  # between signs of life to a reader to whom nothing is sent
MAX_WAITING = 64  # messages that a slow reader has not taken; then it must connect again
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


class Stream:
    """Messages to all readers, from one thread that looks at the records."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.name = secrets.token_hex(8)  # of this server's life: versions begin anew with it
        self._readers: set[asyncio.Queue[str | None]] = set()
        self._stop = threading.Event()
        self.has_failed = False  # whether the thread ended by an error; readers must know

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """Look at the records as long as the application runs."""
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._look, args=(loop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            await run_in_threadpool(thread.join, 5.0)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Poll until the end; an error ends the streams of all readers."""
        try:
            self._poll_until_end(loop)
        finally:
            self.has_failed = not self._stop.is_set()
            if self.has_failed and not loop.is_closed():
                loop.call_soon_threadsafe(self.end)

    def _poll_until_end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Poll; without readers, records are left alone."""
        rest = 0.0
        while not self._stop.wait(POLL_SECONDS):
            if not self._readers:
                continue
            messages = [own.poll() for own in list(self.runs.followers.values())]
            rest -= POLL_SECONDS
            if rest <= 0:
                rest = LOOK_SECONDS
                messages += [json.dumps({"run": summary(own)}) for own in self.runs.refresh()]
            for text in messages:
                if text is not None and not loop.is_closed():
                    loop.call_soon_threadsafe(self._publish, text)

    def end(self) -> None:
        """End the streams of all readers, so that the server can stop."""
        for queue in list(self._readers):
            queue.put_nowait(None)

    def _publish(self, text: str) -> None:
        for queue in list(self._readers):
            if queue.qsize() < MAX_WAITING:
                queue.put_nowait(text)
            else:
                self._readers.discard(queue)
                queue.put_nowait(None)

    async def messages(self) -> AsyncIterator[str]:
        """Yield server-sent events for one reader."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._readers.add(queue)
        try:
            runs = await self._greet()
            yield f"retry: 2000\ndata: {runs}\n\n"
            while True:
                try:
                    text = await asyncio.wait_for(queue.get(), ALIVE_SECONDS)
                except TimeoutError:
                    yield ": alive\n\n"
                    continue
                if text is None:
                    return
                yield f"data: {text}\n\n"
        finally:
            self._readers.discard(queue)

    async def _greet(self) -> str:
        """Return all runs for a new reader; the other readers hear of those that are new."""
        for own in await run_in_threadpool(self.runs.refresh):
            self._publish(json.dumps({"run": summary(own)}))
        runs = [summary(own) for own in list(self.runs.followers.values())]
        return json.dumps({"server": self.name, "runs": runs})


def summary(follower: Follower) -> dict[str, Any]:
    """Return what the list of runs shows of one."""
    return {"key": follower.key, "name": follower.name, "version": follower.version}


def make_app(
    sources: Sequence[str | Path], host: str = "127.0.0.1", token: str | None = None
) -> Starlette:
    """Return the page of some runs as an ASGI application; it only reads.

    Args:
        sources: folders of runs, record files, or folders below which runs appear.
        host: address at which the application will listen; requests to other hosts are refused.
        token: that each request must carry; None: none.

    Raises:
        RecordError: a source does not exist.
    """
    runs = Runs(sources)
    stream = Stream(runs)

    async def view(request: Request) -> Response:
        follower = runs.followers.get(request.path_params["key"])
        if follower is None:
            return JSONResponse({"error": "There is no such run."}, 404)
        return await _answer(follower.view)

    async def detail(request: Request, read: Callable[[Reader], Any]) -> Response:
        follower = runs.followers.get(request.path_params["key"])
        if follower is None:
            return JSONResponse({"error": "There is no such run."}, 404)

        def found() -> str | None:
            with opened(follower.file) as reader:
                value = read(reader)
            return None if value is None else json.dumps(value)

        return await _answer(found)

    async def alert(request: Request) -> Response:
        return await detail(request, lambda r: describe_alert(r, request.path_params["number"]))

    async def probes(request: Request) -> Response:
        behavior, step = (request.path_params[name] for name in ("behavior", "step"))
        return await detail(request, lambda r: describe_probes(r, behavior, step))

    async def page(request: Request) -> Response:
        follower = runs.followers.get(request.path_params["key"])
        place = request.path_params["place"]

        def content() -> bytes | None:
            found = {} if follower is None else pages_of(follower.file)
            try:
                return found[place][1].read_bytes() if place in found else None
            except OSError:  # it was removed meanwhile
                return None

        text = await run_in_threadpool(content)
        if text is None:
            return JSONResponse({"error": "There is no such page."}, 404)
        return Response(
            text, media_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY}
        )

    async def events(request: Request) -> Response:
        if stream.has_failed:
            return JSONResponse({"error": "The server failed: see what it printed."}, 500)
        return StreamingResponse(stream.messages(), media_type="text/event-stream")

    routes = [
        Route("/events", events, methods=["GET"]),
        Route("/runs/{key}", view, methods=["GET"]),
        Route("/runs/{key}/alerts/{number:int}", alert, methods=["GET"]),
        Route("/runs/{key}/probes/{behavior:int}/{step:int}", probes, methods=["GET"]),
        Route("/runs/{key}/pages/{place:path}", page, methods=["GET"]),
        Route("/favicon.ico", lambda request: Response(status_code=204), methods=["GET"]),
        *_static_routes(),
    ]
    access = Middleware(Access, host=host, token=token)
    app = Starlette(routes=routes, middleware=[access], lifespan=stream.running)
    app.state.end_streams = stream.end
    return app


async def _answer(read: Callable[[], str | None]) -> Response:
    """Return what a function reads from a record, in a thread of its own."""
    try:
        text = await run_in_threadpool(read)
    except (RecordError, OSError) as error:
        return JSONResponse({"error": escape_control_chars(str(error))}, 503)
    if text is None:
        return JSONResponse({"error": "The record has nothing there."}, 404)
    return Response(text, media_type="application/json")


def _static_routes() -> list[Route]:
    """Return a route for each file of the page; `index.html` is the page itself."""
    found = []
    for file in sorted(
        files("riprap.dashboard").joinpath("static").iterdir(), key=lambda f: f.name
    ):
        kind = MEDIA_TYPES.get(Path(file.name).suffix)
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            found.append(
                Route(path, _static(_filled(file.read_text("utf-8")), kind), methods=["GET"])
            )
    return found


def _filled(text: str) -> str:
    """Put the explanations of words where the page wants them."""
    return re.sub(
        r'<dd data-word="([^"]+)">', lambda found: f"<dd>{escape(WORDS[found[1]])} ", text
    )


def _static(content: str, kind: str) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer
