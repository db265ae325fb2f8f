"""A real PostgreSQL server of the tests' own, in a temporary folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool


class Server:
    """A server on a port of its own, with one database and its owner `study`.

    The port is below those that a system gives to outgoing connections: while the server is stopped, one of them would
    take it.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self._data, self._programs = folder / "data", programs
        self._changing = threading.Lock()  # clients may have found a server again that is still waited for
        # The server refuses to run as root, whose tests use the account that its package makes.
        self._account = ["runuser", "-u", "postgres", "--"] if getpass.getuser() == "root" else []
        if self._account:
            shutil.chown(folder, "postgres")
            folder.chmod(0o755)
        self.port = next(port for port in random.sample(range(20_000, 32_000), 12_000) if _is_free(port))
        self._run("initdb", "--auth=trust", "--username=study", "--no-sync")
        settings = f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n"
        subprocess.run([*self._account, "tee", "-a", self._data / "postgresql.conf"], input=settings, text=True,
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        self.start()
        self.query("CREATE DATABASE study", database="postgres")

    def url(self, user: str = "study", database: str = "study") -> str:
        """Return the URL of the database for a user."""
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self._changing:
            self._run("pg_ctl", "start", "--wait", "--silent", f"--log={self._data}/log")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server: `immediate` is what a crash looks like."""
        with self._changing:
            self._run("pg_ctl", "stop", f"--mode={mode}", "--silent")

    def query(self, text: str, database: str = "study") -> Sequence[sqlalchemy.Row[tuple[object, ...]]]:
        """Run a statement with a connection of its own and return its rows."""
        engine = sqlalchemy.create_engine(self.url(database=database), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            result = connection.execute(sqlalchemy.text(text))
            return result.all() if result.returns_rows else []

    def empty(self) -> None:
        """Replace the database by an empty one."""
        self.query("DROP DATABASE study WITH (FORCE)", database="postgres")
        self.query("CREATE DATABASE study", database="postgres")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._account, self._programs / program, f"--pgdata={self._data}", *arguments]
        # A server keeps the files that it inherits: a pipe for its output would never end.
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/")


def _is_free(port: int) -> bool:
    with socket.socket() as tried, contextlib.suppress(OSError):
        tried.bind(("127.0.0.1", port))
        return True
    return False


def server_programs() -> Path:
    """Return the folder of the server's programs, which Debian keeps out of PATH; skip the test if there is none."""
    pytest.importorskip("psycopg")
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not places or os.name != "posix":
        pytest.skip("no PostgreSQL server is installed")
    return places[-1]
