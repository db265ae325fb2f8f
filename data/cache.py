"""Decode once: every kept picture as uint8, one memory map per image size, which all workers read and none copies.

catalog, split -> `build` -> a `CacheHandle`, small enough to send to a worker -> `open_part` -> a `Part`.
Under `cache_dir/pictures/<fingerprint>/` lie `<size>.npy`, uint8 (kept pictures, size, size, 3) in the order of
`Catalog.kept`, `<size>.blake2b`, the digest of its pixels, and `split-<digest>.npz`, the labels and the three parts. A
file gets its name when it is whole; of two processes that build at once the later one replaces the earlier one's files
by equal ones.
"""

import errno
import hashlib
import io
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from data import DataError, Track, no_track
from data.catalog import Catalog, Picture
from data.file_checks import write_whole
from data.split import Split
from model.files import printable
from model.preprocessing import PictureError, load_square

PartName = Literal["train", "validation", "test"]
PARTS = get_args(PartName)
"""The names of `Split`'s parts."""

AHEAD = 64
"""Pictures decoded before they are written: enough for every thread, little memory however slow the disk is."""

DIGEST_SIZE = 16
"""Bytes of a digest of pixels."""

ABANDONED = 3600
"""Seconds after which a temporary file that nobody writes to is what a killed process left."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class CacheHandle:
    """Where a study's pictures lie: what a worker gets."""

    directory: Path
    """cache_dir/pictures/<fingerprint>."""
    fingerprint: str
    """The catalog's."""
    split: str
    """Digest of labels and parts: names the split's file."""
    classes: tuple[str, ...]
    """Names; a label is a place in this tuple."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the pictures at one size."""

    images: npt.NDArray[np.uint8]
    """All kept pictures, (n of all, size, size, 3): a read-only memory map."""
    indices: npt.NDArray[np.int64]
    """(n,), this part's places in `images`, which are also those in `Catalog.kept`."""
    labels: npt.NDArray[np.int64]
    """(n,), this part's classes."""
    classes: int
    """How many there are."""


def build(
    catalog: Catalog, split: Split, image_sizes: Iterable[int], *, cache_dir: Path, track: Track = no_track
) -> CacheHandle:
    """Makes what is missing or damaged for these sizes (pixels); a file of the right bytes is used as it is.

    Raises DataError: the folder cannot be written or has too little room, or a picture is not what it was in the scan.
    """
    directory = cache_dir / "pictures" / catalog.fingerprint
    handle = CacheHandle(
        directory=directory,
        fingerprint=catalog.fingerprint,
        split=_digest(catalog.labels, dict(split.named())),
        classes=catalog.classes,
    )
    stored = io.BytesIO()
    np.savez(stored, labels=catalog.labels, **{part: getattr(split, part) for part in PARTS})
    write_whole(_split_path(handle), stored.getvalue())
    sizes = [size for size in sorted(set(image_sizes)) if not _whole(handle, size, len(catalog.kept))]
    if sizes:
        try:
            _remove_abandoned(directory)
            _check_room(directory, sum(len(catalog.kept) * size * size * 3 for size in sizes))
            _write_squares(catalog, sizes, directory, track)
        except OSError as error:
            raise DataError(
                f"the picture cache must be written to {printable(directory)}, but it cannot ({error.strerror}); "
                "make room, mend its rights, or name another folder with --cache DIR"
            ) from error
    return handle


def open_part(handle: CacheHandle, image_size: int, *parts: PartName) -> Part:
    """One part, or several as one, at a size that was built. Raises DataError when the cache has gone or is damaged."""
    path = _split_path(handle)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            labels: npt.NDArray[np.int64] = stored["labels"]
            places: dict[str, npt.NDArray[np.int64]] = {part: stored[part] for part in PARTS}
        if _digest(labels, places) != handle.split:
            raise ValueError("not the split that its name says")
    except Exception as error:  # a damaged zip or header raises a dozen kinds of error, with one cure
        raise _gone(path) from error
    indices = np.concatenate([places[part] for part in parts])
    images = _images(handle, image_size, len(labels))
    if images is None:
        raise _gone(_images_path(handle.directory, image_size))
    return Part(images=images, indices=indices, labels=labels[indices], classes=len(handle.classes))


def _digest(labels: npt.NDArray[np.int64], places: Mapping[str, npt.NDArray[np.int64]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for numbers in (labels, *(places[part] for part in PARTS)):
        digest.update(len(numbers).to_bytes(8, "little") + np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    return digest.hexdigest()


def _split_path(handle: CacheHandle) -> Path:
    return handle.directory / f"split-{handle.split}.npz"


def _whole(handle: CacheHandle, size: int, pictures: int) -> bool:
    """Whether each pixel is the one that was written. A second for a GB that has been read before."""
    images = _images(handle, size, pictures)
    try:
        written = _digest_path(handle.directory, size).read_bytes()
    except OSError:
        return False
    return images is not None and hashlib.blake2b(images.data, digest_size=DIGEST_SIZE).hexdigest().encode() == written


def _digest_path(directory: Path, size: int) -> Path:
    return directory / f"{size}.blake2b"


def _images_path(directory: Path, size: int) -> Path:
    return directory / f"{size}.npy"


def _images(handle: CacheHandle, size: int, pictures: int) -> npt.NDArray[np.uint8] | None:
    """The memory map, or None if it is missing, torn or of another shape; numpy refuses a map longer than its file."""
    try:
        images = np.lib.format.open_memmap(_images_path(handle.directory, size), mode="r")
    except Exception as error:  # of a damaged header also what Python's own tokenizer and parser raise
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise  # no room for a map says nothing about the file
        return None
    return images if images.dtype == np.uint8 and images.shape == (pictures, size, size, 3) else None


def _gone(path: Path) -> DataError:
    return DataError(f"the picture cache must stay while a study runs, but {printable(path)} is not whole; run again")


def _remove_abandoned(directory: Path) -> None:
    for path in directory.glob("*.part"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)
        except OSError:  # another process was faster, or (on Windows) still has it open
            continue


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DataError(
            f"the picture cache needs {needed:,} bytes, but {printable(directory)} has {free:,} free; "
            "make room or name another folder with --cache DIR"
        )


def _write_squares(catalog: Catalog, sizes: Sequence[int], directory: Path, track: Track) -> None:
    kept = catalog.kept
    with ExitStack() as stack:
        # The pool enters last and so ends first: no thread outlives the files.
        files = [stack.enter_context(_npy(directory, size, len(kept))) for size in sizes]
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        squares = _in_order(pool, lambda picture: _squares(catalog.file(picture), picture, sizes), kept)
        for row in track(squares, "Preparing pictures", len(kept)):
            for write, square in zip(files, row, strict=True):
                write(square)


def _squares(path: Path, picture: Picture, sizes: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
    try:
        content = path.read_bytes()
        if hashlib.blake2b(content, digest_size=16).hexdigest() != picture.content_hash:
            raise PictureError("its bytes changed")
        return [load_square(io.BytesIO(content), size) for size in sizes]
    except MemoryError as error:
        raise DataError(
            f"each picture must fit into the memory that is free, but {printable(path)} with {picture.width} x "
            f"{picture.height} pixels does not; free memory, or make it smaller"
        ) from error
    except (PictureError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"pictures must not change while they are prepared, but {printable(path)} did ({reason}); run again"
        ) from error


def _in_order(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`pool.map`, at most AHEAD results ahead of whoever takes them."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def _npy(directory: Path, size: int, pictures: int) -> Generator[Callable[[npt.NDArray[np.uint8]], None]]:
    """Takes so many squares, one by one; their file gets its name, and then its digest, when the block ends well.

    Written, not mapped: a full disk is then an OSError and not a SIGBUS.
    """
    path = _images_path(directory, size)
    temporary = path.with_name(f"{path.name}-{uuid4().hex}.part")
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    try:
        with temporary.open("wb") as file:
            shape = (pictures, size, size, 3)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

            def write(square: npt.NDArray[np.uint8]) -> None:
                pixels = square.tobytes()
                file.write(pixels)
                digest.update(pixels)

            yield write
            file.flush()
            os.fsync(file.fileno())
        try:
            temporary.replace(path)
        except PermissionError:
            # Windows does not replace a file that is mapped: then another process has built the same one.
            if not path.exists():
                raise
        write_whole(_digest_path(directory, size), digest.hexdigest().encode())
    finally:
        temporary.unlink(missing_ok=True)
