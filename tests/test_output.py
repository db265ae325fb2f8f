"""Standard output that fails in every way: the work is done, and nothing is written into other files."""

import errno
import fcntl
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studies import until

from commands.output import READER_LEFT

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="descriptors, pipes and terminals are POSIX's")

WORK = """
import csv, os, sys
from contextlib import suppress
from rich.console import Console
from commands.output import lasting_output

with lasting_output():
    result = open(sys.argv[1], "w")
    for line in range(9000):  # more than a pipe and every buffer hold
        print("a line of output", line)
    Console().print("[b]styled[/b]")
    csv.writer(sys.stdout).writerow(["a", "row"])
    print("a warning", file=sys.stderr)
    with suppress(OSError):
        os.write(1, b"a message of a library in C")
    result.write("done")
"""
"""A command that prints in several ways, and whose work is the file that it is given."""

ESSENTIAL = """
import sys
from tuning import StudyError
from commands.output import essential_output, lasting_output

with lasting_output():
    try:
        with essential_output():
            print("the answer")
    except StudyError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2)
"""
"""A command whose work is to print."""


def run(code: str, *words: str | Path, shell: str = 'exec "$@"', **streams: Any) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", code, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, text=True, timeout=60, **streams)


@pytest.fixture(params=[errno.EPIPE, errno.ENOSPC, errno.EIO], ids=["closed pipe", "full disk", "lost terminal"])
def broken(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A descriptor to which nothing can be written, and the error."""
    if request.param == errno.ENOSPC:
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe() if request.param == errno.EPIPE else os.openpty()
        os.close(reader)
    yield descriptor, request.param
    os.close(descriptor)


def test_the_work_is_done_and_output_that_was_lost_is_said_unless_its_reader_left(
    broken: tuple[int, int], tmp_path: Path
) -> None:
    descriptor, error = broken
    ended = run(WORK, tmp_path / "result", stdout=descriptor, stderr=subprocess.PIPE)
    assert ((tmp_path / "result").read_text(), ended.returncode) == ("done", 0)
    first, *others = ended.stderr.splitlines()
    assert first == "a warning"
    assert [os.strerror(error) in line for line in others] == [True] * (error != errno.EPIPE)
    assert run(WORK, tmp_path / "result", stdout=descriptor, stderr=descriptor).returncode == 0


def test_a_command_whose_work_is_to_print_fails_if_it_cannot(broken: tuple[int, int]) -> None:
    descriptor, error = broken
    ended = run(ESSENTIAL, stdout=descriptor, stderr=subprocess.PIPE)
    if error == errno.EPIPE:
        assert (ended.returncode, ended.stderr) == (READER_LEFT, "")
    else:
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert os.strerror(error) in ended.stderr


def test_what_is_closed_from_the_start_is_not_replaced_by_the_next_file(tmp_path: Path) -> None:
    """As by `>&-`: the result would be file 0, and the library's message would go into it if it were file 1."""
    ended = run(WORK, tmp_path / "result", shell='exec "$@" <&- >&- 2>&-')
    assert ((tmp_path / "result").read_text(), ended.returncode) == ("done", 0)
    ended = run(WORK, tmp_path / "result", shell='exec "$@" >&-')
    assert ((tmp_path / "result").read_text(), ended.returncode) == ("done", 0)


def unread(reader: int) -> int:
    """Return the number of bytes that wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_slow_reader_of_a_pipe_that_does_not_block_gets_everything(tmp_path: Path) -> None:
    """Another program on the same pipe may have made it so; Python's own output would raise BlockingIOError."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    command = [sys.executable, "-c", WORK, str(tmp_path / "result")]
    with subprocess.Popen(command, stdout=writer, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        os.close(writer)
        until(lambda: unread(reader) > 60_000 or process.poll() is not None, "a full pipe")
        with os.fdopen(reader, "rb") as file:
            read = file.read()
    assert process.returncode == 0
    assert read.startswith(b"a line of output 0\n")
    assert read.count(b"a line") == 9000 and b"styled\n" in read
