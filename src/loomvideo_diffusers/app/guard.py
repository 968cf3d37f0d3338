# Copyright 2026 The LoomVideo for Diffusers authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
What stands before Gradio: everybody has a visit, and reaches only what belongs to it.

Gradio resolves the files that a request names, wherever they are: it opens paths, fetches addresses, and serves what
is in its cache to anybody. So requests that name anything but files of their own visit are refused here, before Gradio
sees them; so are routes that the page has no use for.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .limits import Limits
from .visits import Visit, Visits


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "loomvideo_visit"
FILE_ROUTE = "/gradio_api/file="
UPLOAD_ROUTE = "/gradio_api/upload"
CANCEL_ROUTE = "/gradio_api/cancel"

# What the page and its clients ask for, and no more.
READ_ROUTES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/logout|/(static|assets|svelte|pwa_icon)(/.*)?"
    r"|/login_check/?|/gradio_api/(login_check/?|info/?|openapi\.json|app_id/?|startup-events|theme\.css|user/?|token/?"
    r"|heartbeat/[^/]+|queue/data|queue/status|upload_progress|call/[^/]+/[^/]+|file=.*)"
)
WRITE_ROUTES = re.compile(
    r"/login/?|/gradio_api/(upload|queue/join/?|(run|api|call|call/v2)/[^/]+/?|cancel/?|reset/?)"
)

# Bytes of a request that is no upload
MOST_BYTES = 1_000_000

# How many times as much as one file may have a visit may send, and all visits together
FILES_OF_A_VISIT, FILES_OF_ALL = 4, 100

# Nothing in a file that a visitor sent is run, whatever a browser takes it for, and nothing on the way keeps it.
FILE_HEADERS = (
    (b"content-security-policy", b"sandbox; default-src 'none'; style-src 'unsafe-inline'"),
    (b"cache-control", b"private"),
)
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"))


class Answered(Exception):
    """A request is answered here, with a status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Guard:
    """
    ASGI middleware.

    Args:
        app: what it stands before.
        visits: of all who come.
        limits: of each of them.
        hosts: the names by which the page may be called, so that no other site's name leads to it; None for any.
    """

    def __init__(self, app: App, visits: Visits, limits: Limits, hosts: tuple[str, ...] | None = None):
        self.app = app
        self.visits = visits
        self.limits = limits
        self.hosts = hosts
        # Whose each of Gradio's sessions is, the oldest first
        self.sessions: dict[str, Visit] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(scope, receive, send)
            except Answered as error:
                body = json.dumps({"detail": str(error)}).encode()
                headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *HEADERS]
                await send({"type": "http.response.start", "status": error.status, "headers": headers})
                await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self._check_host(headers)
        path = scope["path"]
        routes = READ_ROUTES if scope["method"] in ("GET", "HEAD") else WRITE_ROUTES
        if scope["method"] not in ("GET", "HEAD", "POST") or not routes.fullmatch(path):
            raise Answered(404, "There is nothing here.")
        secret, visit = self.visits.of(_cookie_of(headers))
        scope = {**scope, "headers": _with_cookie(scope["headers"], secret)}
        is_secure = scope["scheme"] == "https" or headers.get(b"x-forwarded-proto", b"").startswith(b"https")
        extra = [*HEADERS, (b"set-cookie", _set_cookie(secret, is_secure))]

        if path.startswith(FILE_ROUTE):
            if not visit.owns(path.removeprefix(FILE_ROUTE)):
                raise Answered(403, "That file belongs to another visit, or is gone.")
            extra += FILE_HEADERS
        body: list[bytes] | None = None
        if path == UPLOAD_ROUTE:
            receive, body = self._limited(visit, headers, receive), []
        elif scope["method"] == "POST":
            content, receive = await self._checked(visit, path, headers, receive)
            if path == CANCEL_ROUTE:
                # Gradio would end all that the same session has called.
                visit.cancel(content.get("event_id") if isinstance(content, dict) else None)
                raise Answered(200, "The call ends within a step.")
        elif match := re.search(r"(?:^|&)session_hash=([^&]*)", scope["query_string"].decode("latin-1")):
            self._check_session(visit, unquote(match[1]))

        is_ok = False

        async def send_more(message: Message) -> None:
            nonlocal is_ok
            if message["type"] == "http.response.start":
                is_ok = message["status"] == 200
                message = {**message, "headers": [*message["headers"], *extra]}
            elif body is not None and is_ok:
                # Before the browser knows of its files, they are its own.
                body.append(message.get("body", b""))
                if not message.get("more_body"):
                    visit.uploads |= {Path(name) for name in json.loads(b"".join(body))}
            await send(message)

        await self.app(scope, receive, send_more)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").rpartition("@")[2]
        if self.hosts is not None and re.sub(r":\d+$", "", host) not in self.hosts:
            raise Answered(
                403, f"This page answers to {' and '.join(self.hosts)} alone: open it by one of these names."
            )

    def _limited(self, visit: Visit, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Refuses an upload that is too large, by what it says of itself and by what comes."""
        too_large = Answered(413, f"Files of up to {self.limits.megabytes:g} MB are taken here: choose a smaller one.")
        length = headers.get(b"content-length", b"0")
        margin = self.limits.num_bytes + MOST_BYTES  # for what surrounds the file
        if not length.isdigit() or int(length) > margin:
            raise too_large
        for whose, times in ((visit, FILES_OF_A_VISIT), (None, FILES_OF_ALL)):
            if self.visits.num_bytes(whose) + int(length) > times * self.limits.num_bytes:
                raise Answered(413, "There is no room for more files now: reload the page in an hour.")
        num_bytes = 0

        async def receive_some() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > margin:
                raise too_large
            return message

        return receive_some

    async def _checked(
        self, visit: Visit, path: str, headers: dict[bytes, bytes], receive: Receive
    ) -> tuple[Any, Receive]:
        """Reads a request, and refuses it if it names what is not the visit's. Returns it, and what reads it again."""
        too_large = Answered(413, "That is more than a request to this page may hold.")
        if int(headers.get(b"content-length", b"0")) > MOST_BYTES:
            raise too_large
        body, content = b"", None
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > MOST_BYTES:
                raise too_large
            if not message.get("more_body"):
                break
        if not path.startswith("/login"):
            try:
                content = json.loads(body or b"null")
            except (ValueError, RecursionError):
                raise Answered(400, "That is no JSON.") from None
            for file in _files_in(content):
                self._check_file(visit, file)
            if isinstance(content, dict) and isinstance(content.get("session_hash"), str):
                self._check_session(visit, content["session_hash"])
        sent = False

        async def receive_again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return content, receive_again

    def _check_file(self, visit: Visit, file: dict[str, Any]) -> None:
        path, url = file.get("path"), file.get("url")
        is_own = path is None or (isinstance(path, str) and visit.owns(path))
        # A browser sends along the address at which it sees its file.
        is_its_own = url is None or (
            isinstance(url, str) and isinstance(path, str) and unquote(url.partition(FILE_ROUTE)[2]) == path
        )
        if not is_own or not is_its_own:
            raise Answered(403, "That file is not one that you sent, or it is gone: choose it again.")

    def _check_session(self, visit: Visit, session: str) -> None:
        """Lets a session belong to the visit that began it."""
        if self.sessions.setdefault(session, visit) is not visit:
            raise Answered(403, "That session belongs to another visit: reload the page.")
        if len(self.sessions) > 10_000:
            del self.sessions[next(iter(self.sessions))]


def _files_in(content: Any) -> Iterator[dict[str, Any]]:
    """What in a request Gradio may take for a file: every object that has a path or an address."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value or "url" in value or "meta" in value:
                yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _cookie_of(headers: dict[bytes, bytes]) -> str | None:
    try:
        morsel = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


def _with_cookie(headers: list[tuple[bytes, bytes]], secret: str) -> list[tuple[bytes, bytes]]:
    """The headers of a request as they will be from now on, with the cookie that it is given."""
    kept = [(name, value) for name, value in headers if name != b"cookie"]
    cookies = [value.decode("latin-1") for name, value in headers if name == b"cookie"]
    others = [part.strip() for text in cookies for part in text.split(";")]
    others = [part for part in others if part and part.partition("=")[0] != COOKIE]
    return [*kept, (b"cookie", "; ".join([*others, f"{COOKIE}={secret}"]).encode("latin-1"))]


def _set_cookie(secret: str, is_secure: bool) -> bytes:
    # Hugging Face shows Spaces in a frame, to which a browser gives cookies only if they are marked like this.
    marks = "SameSite=None; Secure; Partitioned" if is_secure else "SameSite=Lax"
    return f"{COOKIE}={secret}; Path=/; HttpOnly; {marks}".encode()
