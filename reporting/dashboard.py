"""Serves optuna-dashboard for one study with its artifacts, on the loopback address only.

It reads the same database, so it shows a running study live. It can also edit and delete studies, so it must not be
reachable from other machines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna_dashboard import wsgi

from tuning.folder import make_folder

LOOPBACK = "127.0.0.1"
PORT = 8080
"""Default port of optuna-dashboard; another one is used if it is taken."""
NAMES = frozenset({LOOPBACK, "localhost"})
"""Names by which a browser on this machine may call the server."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # Windows would share the port with another server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error of a tab that is closed while it loads; report any other error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it overrides
        """Print nothing for a request."""


def make(study: optuna.Study, artifacts: Path, port: int | None = None) -> tuple[WSGIServer, str]:
    """Return a server that is bound but not yet serving, and the address of the study's page.

    Without `port`, it takes PORT or, if that is taken, any free one. Raises OSError if the given port is taken, and
    StudyError if the folder `artifacts` cannot be created.
    """
    make_folder(artifacts)
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    application = _only_here(wsgi(storage, FileSystemArtifactStore(str(artifacts))))
    try:
        server = make_server(LOOPBACK, port or PORT, application, _Server, _Quiet)
    except OSError:
        if port is not None:
            raise
        server = make_server(LOOPBACK, 0, application, _Server, _Quiet)
    number = study._study_id  # pyright: ignore[reportPrivateUsage]
    return server, f"http://{LOOPBACK}:{server.server_port}/dashboard/studies/{number}"


def on_a_desktop() -> bool:
    """Return whether the user sits at this machine and can see a browser."""
    if "SSH_CONNECTION" in os.environ or not sys.stdout.isatty():
        return False
    return sys.platform in ("win32", "darwin") or bool(os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"})


def _only_here(application: Application) -> Application:
    """Return an application that answers only requests whose host is a name of this machine.

    A web page can point its own name at the loopback address ("DNS rebinding"), and could then read and delete studies
    through the visitor's browser.
    """

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Any port is accepted: a tunnel has its own, and port 80 is left out of the name.
        if environ.get("HTTP_HOST", "").partition(":")[0] in NAMES:
            # optuna-dashboard raises a KeyError for a client that names no encoding, such as curl.
            environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"This dashboard answers on this machine alone.\n"]

    return guarded
