"""The picture cache: every kept picture decoded once, as uint8, in one memory map per image size shared by all workers.

catalog, split -> `build` -> a `CacheHandle`, small enough to send to a worker -> `open_part` -> a `Part`.
The folder cache_dir/pictures/<fingerprint> holds `<size>.npy`, uint8 (kept pictures, size, size, 3) in the order of
`Catalog.kept`; `<size>.blake2b`, the digest of its pixels; and `split-<digest>.npz`, the labels and the three parts.
Files appear under their names only when complete. Of two processes that build at once, the later one replaces the
earlier one's files with equal ones.
"""

import errno
import hashlib
import io
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data import CACHE_FIX, DataError, Track, explained, no_track
from data.catalog import Catalog, Picture
from data.split import PARTS, PartName, Split
from model.files import UNFINISHED, printable, replacing, replacing_on_disk
from model.limits import cpus
from model.preprocessing import PictureError, Ranges, load_square

AHEAD = 64
"""Largest number of pictures decoded but not yet written: enough for every thread, and little memory even if the disk
is slow."""

DIGEST_SIZE = 16
"""Length in bytes of a digest of pixels."""

ABANDONED = 3600
"""Seconds without a write after which an unfinished file is considered left behind by a killed process."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class CacheHandle:
    """Location of a study's pictures in the cache: what a worker is sent."""

    directory: Path
    """Folder of the pictures, cache_dir/pictures/<fingerprint>."""
    fingerprint: str
    """The catalog's fingerprint."""
    split: str
    """Digest of the labels and parts, and part of the split file's name."""
    classes: tuple[str, ...]
    """Class names; a label is a position in this tuple."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pictures of one or more parts of the split, at one size."""

    images: npt.NDArray[np.uint8]
    """All kept pictures, those of other parts included: a read-only memory map (kept pictures, size, size, 3)."""
    indices: npt.NDArray[np.int64]
    """Positions of this part's n pictures in `images`, which are also those in `Catalog.kept`; (n,)."""
    labels: npt.NDArray[np.int64]
    """Class numbers of this part's pictures, (n,)."""
    classes: int
    """Number of classes."""


def build(
    catalog: Catalog, split: Split, image_sizes: Iterable[int], *, cache_dir: Path, track: Track = no_track
) -> CacheHandle:
    """Decode the kept pictures at each size (pixels), except at sizes whose files exist and are intact.

    Raises DataError if the folder cannot be written or has too little room, or if a picture has changed since the scan.
    """
    directory = cache_dir / "pictures" / catalog.fingerprint
    handle = CacheHandle(
        directory=directory,
        fingerprint=catalog.fingerprint,
        split=_digest(catalog.labels, dict(split.named())),
        classes=catalog.classes,
    )
    stored = io.BytesIO()
    np.savez(stored, labels=catalog.labels, train=split.train, validation=split.validation, test=split.test)
    missing = [size for size in sorted(set(image_sizes)) if not _intact(handle, size, len(catalog.kept))]
    with explained(f"cannot write {printable(directory)}", CACHE_FIX):
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(_split_path(handle)) as unfinished:
            unfinished.write_bytes(stored.getbuffer())
        if missing:
            remove_abandoned(directory)
            _check_room(directory, sum(len(catalog.kept) * size * size * 3 for size in missing))
            _write_squares(catalog, missing, directory, track)
    return handle


def open_part(handle: CacheHandle, image_size: int, *parts: PartName) -> Part:
    """Open one part, or several as one, at a size that was built. Raises DataError if the files are gone or damaged."""
    path = _split_path(handle)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            labels: npt.NDArray[np.int64] = stored["labels"]
            positions: dict[str, npt.NDArray[np.int64]] = {part: stored[part] for part in PARTS}
        if _digest(labels, positions) != handle.split:
            raise ValueError("the split in the file does not match the file's name")
    except Exception as error:  # a damaged zip or header raises a dozen kinds of error, all with the same cure
        raise _damaged(path) from error
    indices = np.concatenate([positions[part] for part in parts])
    images = _images(handle, image_size, len(labels))
    if images is None:
        raise _damaged(_images_path(handle.directory, image_size))
    return Part(images=images, indices=indices, labels=labels[indices], classes=len(handle.classes))


def squares(catalog: Catalog, positions: Sequence[int], size: int) -> Generator[npt.NDArray[np.uint8]]:
    """Decode the kept pictures at these positions in turn, as uint8 (size, size, 3), and store nothing.

    Raises DataError if a picture has changed since the scan.
    """
    kept = [catalog.kept[position] for position in positions]
    with ThreadPoolExecutor(cpus()) as pool:
        for (square,) in _in_order(
            pool, lambda picture: _squares(catalog.file(picture), picture, [size], catalog.ranges), kept
        ):
            yield square


def cache_files(handle: CacheHandle, image_size: int) -> list[Path]:
    """Return the paths of the files that pictures of one size consist of, for a copy on another machine."""
    directory = handle.directory
    return [_split_path(handle), _images_path(directory, image_size), _digest_path(directory, image_size)]


def read_chunk(path: Path, offset: int, length: int) -> bytes:
    """Return up to `length` bytes of a file of the cache. Raises DataError if it is gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise _damaged(path) from error


def is_intact(handle: CacheHandle, image_size: int) -> bool:
    """Return whether the pictures of one size are those that were decoded; takes a second per GB."""
    try:
        part = open_part(handle, image_size, "train")
    except DataError:
        return False
    return _intact(handle, image_size, len(part.images))


def _digest(labels: npt.NDArray[np.int64], positions: Mapping[str, npt.NDArray[np.int64]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for numbers in (labels, *(positions[part] for part in PARTS)):
        digest.update(len(numbers).to_bytes(8, "little") + np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    return digest.hexdigest()


def _split_path(handle: CacheHandle) -> Path:
    return handle.directory / f"split-{handle.split}.npz"


def _images_path(directory: Path, size: int) -> Path:
    return directory / f"{size}.npy"


def _digest_path(directory: Path, size: int) -> Path:
    return directory / f"{size}.blake2b"


def _intact(handle: CacheHandle, size: int, pictures: int) -> bool:
    """Return whether the pixels are those that were written; takes a second per GB of a file in the page cache."""
    images = _images(handle, size, pictures)
    try:
        written = _digest_path(handle.directory, size).read_bytes()
    except OSError:
        return False
    return images is not None and hashlib.blake2b(images.data, digest_size=DIGEST_SIZE).hexdigest().encode() == written


def _images(handle: CacheHandle, size: int, pictures: int) -> npt.NDArray[np.uint8] | None:
    """Return the memory map; None if the file is missing, truncated (numpy refuses to map it) or misshapen."""
    try:
        images = np.lib.format.open_memmap(_images_path(handle.directory, size), mode="r")
    except Exception as error:  # on a damaged header, also whatever Python's own tokenizer and parser raise
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise  # lack of address space says nothing about the file
        return None
    return images if images.dtype == np.uint8 and images.shape == (pictures, size, size, 3) else None


def _damaged(path: Path) -> DataError:
    return DataError(
        f"cannot read {printable(path)} (missing from the picture cache, or damaged): run the same command again to "
        "rebuild it"
    )


def remove_abandoned(directory: Path) -> None:
    """Remove unfinished files that killed processes have left in a folder of the cache."""
    for path in directory.glob(f"*{UNFINISHED}"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)
        except OSError:  # another process removed it first, or (on Windows) still has it open
            continue


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DataError(
            f"not enough room for the picture cache in {printable(directory)} ({needed:,} bytes needed, {free:,} "
            "free): free some space, or choose another folder with --cache DIR"
        )


def _write_squares(catalog: Catalog, sizes: Sequence[int], directory: Path, track: Track) -> None:
    kept = catalog.kept
    with ExitStack() as stack:
        # The pool is entered last and so exits first: no thread outlives the files.
        files = [stack.enter_context(_npy(directory, size, len(kept))) for size in sizes]
        pool = stack.enter_context(ThreadPoolExecutor(cpus()))
        squares = _in_order(pool, lambda picture: _squares(catalog.file(picture), picture, sizes, catalog.ranges), kept)
        for row in track(squares, "Preparing pictures", len(kept)):
            for write, square in zip(files, row, strict=True):
                write(square)


def _squares(path: Path, picture: Picture, sizes: Sequence[int], ranges: Ranges) -> list[npt.NDArray[np.uint8]]:
    """Decode one picture at each size. Raises DataError if it is no longer the picture that was scanned."""
    try:
        content = path.read_bytes()
        if hashlib.blake2b(content, digest_size=16).hexdigest() != picture.content_hash:
            raise PictureError("its bytes differ")
        return [load_square(io.BytesIO(content), size, ranges) for size in sizes]
    except MemoryError as error:
        raise DataError(
            f"not enough memory to decode {printable(path)} ({picture.width} x {picture.height} pixels): free some "
            "memory, or make the picture smaller"
        ) from error
    except (PictureError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{printable(path)} has changed since it was checked ({reason}): run the command again"
        ) from error


def _in_order(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map like `pool.map`, but never run more than AHEAD results ahead of the consumer."""
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
    """Yield a function that appends one square to `<size>.npy`; the file and its digest appear when the block ends.

    The file is written, not mapped, so that a full disk raises an OSError instead of a SIGBUS.
    """
    path = _images_path(directory, size)
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    complete = False
    try:
        with replacing_on_disk(path) as file:
            shape = (pictures, size, size, 3)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

            def write(square: npt.NDArray[np.uint8]) -> None:
                pixels = square.tobytes()
                file.write(pixels)
                digest.update(pixels)

            yield write
            complete = True
    except PermissionError:
        # Windows does not replace a file that is mapped: another process is then using an equal one.
        if not (complete and path.exists()):
            raise
    with replacing(_digest_path(directory, size)) as unfinished:
        unfinished.write_bytes(digest.hexdigest().encode())
