"""Serve the page to this computer alone. Knows sockets, tokens and headers; knows nothing of mail.

Every request passes three gates, in this order: Host (no DNS rebinding), Origin (no other site's page),
token (no other user of this computer). The token is made anew at each launch and travels once, in the link.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panza.types import UserError

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
PORTS_TO_TRY = 20

# Gradio puts its settings into inline scripts and styles, and compiles its own templates: hence the three 'unsafe'.
# They open nothing to the outside: no directive names a host but this one.
CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
ASSETS = {"panza.css": "text/css", "favicon.ico": "image/svg+xml"}


@dataclass(frozen=True)
class Listening:
    """A bound socket and the server that will answer on it."""

    server: uvicorn.Server
    sock: socket.socket
    port: int
    token: str

    @property
    def link(self) -> str:
        """The only way in."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def run(self) -> None:
        """Answer until Ctrl-C, or until `server.should_exit` is set."""
        self.server.run(sockets=[self.sock])


def serve(assistant: Any, port: int = 7860, open_browser: bool = True, announce: Callable[[str], None] = print) -> None:
    """Show the page until Ctrl-C. A taken port gives way to the next free one.

    announce: gets the link, once the page can be opened.
    """
    listening = listen(assistant, port)
    announce(f"Panza is at {listening.link}\nOnly this computer can open it. Ctrl-C stops it.")
    if open_browser and _has_screen():
        threading.Thread(target=webbrowser.open, args=[listening.link], daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has closed everything
        listening.run()


def listen(assistant: Any, port: int = 7860) -> Listening:
    """Everything ready to run: the page built, the port taken."""
    _set_environment(assistant.home.root)
    import uvicorn

    sock = _bind(port)
    port, token = sock.getsockname()[1], secrets.token_urlsafe(32)
    guarded = Guard(_application(assistant), port, token)
    config = uvicorn.Config(
        guarded, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1
    )
    return Listening(uvicorn.Server(config), sock, port, token)


class Guard:
    """ASGI middleware: the three gates, and the headers on every answer."""

    def __init__(self, app: Any, port: int, token: str):
        self._app, self._token = app, token
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self._cookie = f"panza_{port}"  # cookies are shared by all ports of a host

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # Gradio streams over plain HTTP; nobody here speaks WebSocket
            return await send({"type": "websocket.close", "code": 1008})
        from starlette.requests import Request

        answer = self._answer(Request(scope)) or self._app
        await answer(scope, receive, _with_headers(send))

    def _answer(self, request: Request) -> Response | None:
        """A refusal, or the redirect that sets the cookie; None lets the request through."""
        from starlette.responses import PlainTextResponse, RedirectResponse

        if refusal := self._refusal(request):
            return PlainTextResponse(refusal, 403)
        if "token" not in request.query_params:
            return None
        response = RedirectResponse("/", 303)
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return response

    def _refusal(self, request: Request) -> str:
        """One sentence that says why this request is refused; empty if it is welcome."""
        origin = request.headers.get("origin")
        if request.headers.get("host") not in self._hosts:
            return "Panza answers only at the address 127.0.0.1 of this computer."
        if origin is not None and origin.removeprefix("http://") not in self._hosts:
            return "Panza answers only its own page, not pages of other sites."
        if not self._knows(request):
            return "Open the link that Panza printed when it started: it holds the key to this page."
        return ""

    def _knows(self, request: Request) -> bool:
        shown = request.cookies.get(self._cookie, "")
        if request.url.path == "/":
            shown = request.query_params.get("token", shown)
        return secrets.compare_digest(shown.encode(), self._token.encode())


def _with_headers(send: Callable) -> Callable:
    from starlette.datastructures import MutableHeaders

    async def sending(message: dict) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending


def _application(assistant: Any) -> Any:
    import gradio as gr
    from fastapi import FastAPI

    from panza.web import page

    app = FastAPI(openapi_url=None)
    for name, kind in ASSETS.items():
        app.get(f"/{name}")(_asset(name, kind))
    return gr.mount_gradio_app(
        app,
        page.build(assistant),
        "/",
        server_name=HOST,
        theme=page.theme(),
        head=page.HEAD,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        show_error=False,
        allowed_paths=[],
        max_file_size="1kb",
    )


def _asset(name: str, kind: str) -> Callable[[], Response]:
    from starlette.responses import Response

    content = (resources.files("panza.web") / "assets" / name).read_bytes()
    return lambda: Response(content, media_type=kind)


def _set_environment(root: Path) -> None:
    """Must come before the first import of Gradio, which reads these when it is imported."""
    folder = root / "web"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder), DO_NOT_TRACK="1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _bind(port: int) -> socket.socket:
    """The first free port from `port` on (0: any), already listening."""
    for candidate in range(port, port + PORTS_TO_TRY):
        try:
            return socket.create_server((HOST, candidate))
        except (OSError, OverflowError):
            continue
    raise UserError(f"The ports {port} to {port + PORTS_TO_TRY - 1} are all taken: name a free one with --port.")


def _has_screen() -> bool:
    """False where webbrowser would start a text browser inside this terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
