"""Ctrl-C while torch is being imported."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

FRAGILE = ("torch", "torchvision")
"""Packages whose C++ code calls Python while they are imported, and aborts the process where that raises an error."""
AGAIN_SECONDS = 0.05


@contextmanager
def interruptible() -> Generator[None]:
    """Raise KeyboardInterrupt for a Ctrl-C, but only when no fragile package is half imported.

    A program that has its own handler, or was started to ignore the signal, keeps it.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_importing():
        raise KeyboardInterrupt
    again = threading.Timer(AGAIN_SECONDS, _send, [number])
    again.daemon = True
    again.start()


def _send(number: int) -> None:
    """Send a signal to the main thread, whose waiting it ends where the system can do that."""
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def _is_importing() -> bool:
    """Return whether a module of a fragile package is being imported, as Python's import system notes it."""
    modules = [module for name, module in sys.modules.copy().items() if name.partition(".")[0] in FRAGILE]
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules)
