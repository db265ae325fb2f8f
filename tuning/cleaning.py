"""What studies and caches weigh on the disk, and their removal by name. A user's pictures are never among them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning import StudyError


@dataclass(frozen=True, kw_only=True)
class Item:
    """A study or a cache, as `clean` lists it."""

    name: str
    """A study's name, or cache/<folder>."""
    path: Path
    size: int
    """Bytes."""


def find(results: Path, cache: Path) -> list[Item]:
    """Every study under `results` and every cache under `cache`."""
    studies = [(folder.name, folder) for folder in _folders(results) if (folder / "trials").is_dir()]
    caches = [(f"cache/{folder.name}", folder) for folder in _folders(cache)]
    return [Item(name=name, path=folder, size=_size(folder)) for name, folder in studies + caches]


def choose(items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """The named ones. Raises StudyError naming one that is not there, before anything is removed."""
    by_name = {item.name: item for item in items}
    for name in names:
        if name not in by_name:
            raise StudyError(
                f"clean removes what it lists, but there is no '{name}'; there are: {', '.join(by_name) or 'none'}"
            )
    return [by_name[name] for name in names]


def remove(item: Item) -> None:
    """Deletes a study or a cache. Raises StudyError for a study that is being run."""
    from tuning.storage import sole_coordinator

    if not item.name.startswith("cache/"):
        with sole_coordinator(item.path):
            pass
    try:
        shutil.rmtree(item.path)
    except OSError as error:
        raise StudyError(f"{item.path} cannot be removed ({error.strerror}); mend its rights and try again") from error


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
