"""Sources of pictures: turns a name or a path into a `Source`.

`field-guide` is drawn into the cache folder, `kaggle` is downloaded by kagglehub, anything else is a path. A path may
have one of these layouts, also inside one or two enclosing folders (`Mushrooms/<class>/...`, as archives unpack):

    <class>/...                                parts {"all"}
    train/<class>/... and test/<class>/...     parts {"train", "test"}
    train/<class>/... and val/<class>/...      parts {"train", "validation"}; or valid/, validation/; also with test/

Other folders beside `train` are ignored. Only folders and their names are read here; the catalog opens the files.
"""

import importlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from data import DataError, Track, explained, no_track
from model.files import is_hidden, printable

FIELD_GUIDE, KAGGLE = NAMES = ("field-guide", "kaggle")
"""Values of `--data` that are names rather than paths."""

KAGGLE_HANDLE = "maysee/mushrooms-classification-common-genuss-images"

PART_FOLDERS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
"""Official part by lower-case folder name."""

LONGEST = 60
"""Largest number of characters in a study's default name: names derived from it must fit into a folder's 255 bytes."""

ENCLOSING = 2
"""Largest number of enclosing folders to step through. Kaggle's archive has two: `Mushrooms/Mushrooms/`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on disk with a known folder layout."""

    name: str
    """Default name of a study of these pictures: lower-case letters and digits of any script, and dashes."""
    root: Path
    """Absolute path of the data set; links that lead out of it are refused."""
    parts: dict[str, Path]
    """Folder of each part: {"all": root}, or "train" with "test" or "validation" or both, all with the same classes."""
    available: int | None
    """Number of pictures that the source can provide, if known without scanning the folder."""
    citation: str
    """Origin of the pictures in one line, for reports and model cards."""

    def __post_init__(self) -> None:
        if set(self.parts) != {"all"} and not ("train" in self.parts and len(self.parts) > 1):
            raise ValueError(f"parts must be all, or train with test or validation, but got {sorted(self.parts)}")


def resolve(
    data: str, *, cache_dir: Path, pictures: int | None, test_data: Path | None = None, track: Track = no_track
) -> Source:
    """Return the source named by `data`: "field-guide", "kaggle", or a path (`./kaggle` is a folder of that name).

    `pictures` is the number that the field guide draws, None for its full set; other sources ignore it, as
    `Catalog.limited` selects from them later. `test_data` is a folder that becomes the official test set.
    Raises DataError for a missing folder, an unknown layout, classes that do not match, or a failed download.
    """
    if data == FIELD_GUIDE:
        source = _field_guide(cache_dir, pictures, track)
    elif data == KAGGLE:
        source = _folder(_download_kaggle(), name=KAGGLE, citation=f"Kaggle data set {KAGGLE_HANDLE}")
    else:
        path = Path(data).expanduser()
        if not data or not path.exists():
            reason = f"there is no {printable(path.absolute())}" if data else "empty"
            raise DataError(
                f"cannot find --data '{printable(data)}' ({reason}): pass a folder of class folders, 'field-guide' or "
                "'kaggle'"
            )
        path = path.resolve()
        source = _folder(path, name=_slug(path.name), citation=f"pictures in {printable(path)}")
    if test_data is not None:
        source = _with_test(source, test_data)
    _check_same_classes(source)
    return source


def class_folders(folder: Path) -> dict[str, Path]:
    """Return each class's folder by name, sorted; hidden folders and `__MACOSX` are not classes.

    Raises DataError if a name is blank, if two names differ only in case, Unicode form, or surrounding spaces and dots
    (on macOS or Windows they would be one folder, and in a table they look the same), or if a class folder is a link
    that leads out of `folder` (its pictures would silently be left out).
    """
    found = {path.name: path for path in _folders_in(folder)}
    seen: dict[str, str] = {}
    for name, path in found.items():
        if not name.strip():
            raise DataError(f"{printable(folder)} has a class folder with a blank name, {name!r}: rename it")
        alike = unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold()).strip(" .")
        if alike in seen:
            raise DataError(
                f"{printable(folder)} has two classes with nearly the same name ('{printable(seen[alike])}' and "
                f"'{printable(name)}' differ only in case, Unicode form, spaces or dots): rename or merge them"
            )
        seen[alike] = name
        if path.is_symlink() and not path.resolve().is_relative_to(folder):
            raise DataError(
                f"class folder {printable(path)} is a link out of the data set, to {printable(path.resolve())}: "
                "replace the link with a copy of that folder, or remove it"
            )
    return found


def _field_guide(cache_dir: Path, pictures: int | None, track: Track) -> Source:
    from data import field_guide

    total = sum(field_guide.GENERA.values())
    wanted = field_guide.DEFAULT_TOTAL if pictures is None else pictures
    # One folder per total: in a shared one, a small set would contain the pictures of a larger one drawn earlier.
    folder = cache_dir / "field-guide" / f"{wanted}-v{field_guide.VERSION}"
    folder = field_guide.write(folder, wanted, track=track).resolve()
    citation = "the built-in field guide: procedural drawings, not photographs"
    return Source(name=FIELD_GUIDE, root=folder, parts={"all": folder}, available=total, citation=citation)


def _download_kaggle() -> Path:
    by_hand = f"or download and unpack https://www.kaggle.com/datasets/{KAGGLE_HANDLE} and pass the folder with --data"
    try:
        kagglehub = importlib.import_module("kagglehub")
    except ModuleNotFoundError as error:
        raise DataError(
            f"cannot use --data kaggle (the package kagglehub is not installed): pip install -e '.[kaggle]', {by_hand}"
        ) from error
    download = cast(Callable[[str], str], kagglehub.dataset_download)
    try:
        return Path(download(KAGGLE_HANDLE)).resolve()
    except Exception as error:  # errors of kagglehub, requests and the file system have no other base in common
        reason = printable((str(error).strip() or type(error).__name__).splitlines()[0])[:160]
        raise DataError(
            f"cannot download {KAGGLE_HANDLE} for --data kaggle ({reason}): check the network and the credentials "
            f"(KAGGLE_USERNAME and KAGGLE_KEY, or ~/.kaggle/kaggle.json), {by_hand}"
        ) from error


def _folder(path: Path, *, name: str, citation: str) -> Source:
    if not path.is_dir():
        raise DataError(
            f"--data {printable(path)} is a file: pass a folder of class folders; if this is an archive, unpack it"
        )
    root = path
    for _ in range(ENCLOSING):
        inside = _folders_in(root)
        if len(inside) != 1 or not _folders_in(inside[0]):
            break
        root = inside[0].resolve()
    parts = _official_parts(root) or {"all": root}
    for folder in parts.values():
        _check_classes(folder)
    return Source(name=name, root=root, parts=parts, available=None, citation=citation)


def _official_parts(root: Path) -> dict[str, Path] | None:
    """Return the parts if `root` has a train folder and another part; `train` alone may be a class of vehicles."""
    parts: dict[str, Path] = {}
    for folder in _folders_in(root):
        part = PART_FOLDERS.get(folder.name.casefold())
        if part in parts:
            raise DataError(
                f"{printable(root)} has two {part} sets, '{parts[part].name}' and '{folder.name}': remove one"
            )
        if part and _folders_in(folder):
            parts[part] = folder.resolve()
    return parts if "train" in parts and len(parts) > 1 else None


def _with_test(source: Source, test_data: Path) -> Source:
    if "test" in source.parts:
        raise DataError(
            f"{printable(source.root)} has a test set of its own, but --test-data gives {printable(test_data)}: omit "
            f"--test-data, or pass {printable(source.parts['train'])} with --data"
        )
    if not test_data.expanduser().is_dir():
        raise DataError(f"--test-data {printable(test_data)} is not a folder: pass a folder of class folders")
    folder = test_data.expanduser().resolve()
    inside = _folders_in(folder)
    if len(inside) == 1 and _folders_in(inside[0]):
        folder = inside[0].resolve()
    _check_classes(folder)
    for part in source.parts.values():
        if folder.is_relative_to(part) or part.is_relative_to(folder):
            raise DataError(
                f"--test-data {printable(folder)} and --data {printable(part)} overlap: move the test pictures out"
            )
    training = {"train" if part == "all" else part: path for part, path in source.parts.items()}
    return replace(source, parts={**training, "test": folder})


def _check_classes(folder: Path) -> None:
    classes = list(class_folders(folder))
    if len(classes) >= 2:
        return
    files = sum(1 for path in folder.iterdir() if path.is_file() and not is_hidden(path.name))
    found = f"only one class folder, '{printable(classes[0])}'," if classes else "no class folder"
    raise DataError(
        f"{printable(folder)} has {found} and {files} file{'s' * (files != 1)}, but needs at least 2 class folders: "
        "put the pictures of each class into its own folder"
    )


def _check_same_classes(source: Source) -> None:
    names = {part: set(class_folders(folder)) for part, folder in source.parts.items()}
    first = next(iter(names))
    for part, classes in names.items():
        if classes != names[first]:
            raise DataError(
                f"the parts have different classes (only in {printable(source.parts[first])}: "
                f"{_some(names[first] - classes)}; only in {printable(source.parts[part])}: "
                f"{_some(classes - names[first])}): rename, add or remove folders"
            )


def _some(names: Iterable[str]) -> str:
    """Return up to three of the names, quoted, and how many more there are."""
    ordered = [f"'{printable(name)}'" for name in sorted(names)]
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more or "none"


def _folders_in(folder: Path) -> list[Path]:
    with explained(f"cannot read {printable(folder)}", "change its permissions"):
        return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _slug(name: str) -> str:
    slug = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", name).lower()).strip("-")
    return slug[:LONGEST].strip("-") or "pictures"
