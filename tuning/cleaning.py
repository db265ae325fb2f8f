"""Finds studies and caches with their sizes on disk, and removes them by name; never the user's own pictures."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning import StudyError
from tuning.lock import sole_coordinator

CACHES = {"field-guide": "[0-9]*", "pictures": "[0-9a-f]" * 32, "scans": "*.npz"}
"""Cache folders, each with the pattern of this program's files. Only these are removed: `--cache` may be any folder."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A study or a cache, as `clean` lists it."""

    name: str
    """Name of a study, or cache/<folder> for a cache."""
    path: Path
    parts: tuple[Path, ...]
    """Files and folders to remove; `path` itself is removed if that leaves it empty."""
    size: int
    """Total size of the parts in bytes."""


def find(results: Path, cache: Path) -> list[Item]:
    """Return every study under `results` and every cache under `cache`."""
    studies = [
        Item(name=folder.name, path=folder, parts=(folder,), size=_size(folder))
        for folder in (sorted(results.iterdir()) if results.is_dir() else [])
        if (folder / "trials").is_dir() and any((folder / name).is_file() for name in ("study.lock", "data_report.csv"))
    ]
    caches: list[Item] = []
    for name, ours in CACHES.items():
        parts = tuple(sorted((cache / name).glob(ours)))
        if parts:
            caches.append(Item(name=f"cache/{name}", path=cache / name, parts=parts, size=sum(map(_size, parts))))
    return studies + caches


def choose(items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """Return the named items. If one does not exist, raises StudyError with its name."""
    by_name = {item.name: item for item in items}
    for name in names:
        if name not in by_name:
            raise StudyError(
                f"nothing named '{name}' to remove: there are {', '.join(by_name) or 'no studies or caches'}"
            )
    return [by_name[name] for name in dict.fromkeys(names)]


def remove(item: Item) -> None:
    """Delete a study or a cache. Raises StudyError if the study is running."""
    if not item.name.startswith("cache/"):
        with sole_coordinator(item.path):
            pass
    try:
        for part in item.parts:
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink()
    except OSError as error:
        raise StudyError(f"cannot remove {item.path} ({error.strerror}): make it writable and try again") from error
    with contextlib.suppress(OSError):  # already gone, or it holds other files
        item.path.rmdir()


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.lstat().st_size for file in files)
