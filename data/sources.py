"""Where pictures come from: a name or a path in, a `Source` out - a folder of class folders, or one per official part.

`field-guide` is drawn into the cache folder, `kaggle` is downloaded by kagglehub, anything else is a path. The layouts
of a path that are understood, each also inside one enclosing folder (`Mushrooms/<class>/…`, as archives unpack):

    <class>/…                              parts {"all"}
    train/<class>/… and test/<class>/…     parts {"train", "test"}
    train/<class>/… and val/<class>/…      parts {"train", "validation"}; or valid/, validation/; also with test/

Other folders beside `train` are not read. Only names and folders are looked at here; the catalog opens the files.
"""

import importlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from data import DataError, Track, no_track
from model.files import is_hidden, printable

FIELD_GUIDE, KAGGLE = NAMES = ("field-guide", "kaggle")
"""What names a data set and no path."""

KAGGLE_HANDLE = "maysee/mushrooms-classification-common-genuss-images"

PART_FOLDERS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
"""Folder name, in any case -> official part."""

LONGEST = 60
"""Characters of a study's default name: a folder's may have 255 bytes, and a study's folder holds longer ones."""

ENCLOSING = 2
"""Folders with nothing but one folder in them that are stepped through; Kaggle's archive has `Mushrooms/Mushrooms/`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on disk whose layout is understood."""

    name: str
    """The study's default name: lower case letters and digits of any script, and dashes."""
    root: Path
    """Absolute; links that lead out of it are refused."""
    parts: dict[str, Path]
    """{"all": root}, or {"train": …} with "test" or "validation" or both. Each holds the same class folders."""
    available: int | None
    """How many pictures the source could give, where that is known before the folder is scanned."""
    citation: str
    """Where the pictures come from, one line, for reports and model cards."""

    def __post_init__(self) -> None:
        if set(self.parts) != {"all"} and not ("train" in self.parts and len(self.parts) > 1):
            raise ValueError(f"parts must be all, or train with test or validation, but got {sorted(self.parts)}")


def resolve(
    data: str, *, cache_dir: Path, pictures: int | None, test_data: Path | None = None, track: Track = no_track
) -> Source:
    """The source that `data` names: "field-guide", "kaggle", or a path (`./kaggle` is a folder of that name).

    `pictures` is how many the field guide draws (None: all of them); of other sources `Catalog.limited` takes a part.
    `test_data` is a folder of the same class folders that becomes the official test part.
    Raises DataError: no such folder, a layout that is not understood, classes that do not agree, or a failed download.
    """
    if data == FIELD_GUIDE:
        source = _field_guide(cache_dir, pictures, track)
    elif data == KAGGLE:
        source = _folder(_download_kaggle(), name=KAGGLE, citation=f"Kaggle data set {KAGGLE_HANDLE}")
    else:
        path = Path(data).expanduser()
        if not data or not path.exists():
            raise DataError(
                f"--data must be 'field-guide', 'kaggle' or a folder of class folders, but got '{printable(data)}', "
                f"and there is no {printable(path.absolute())}"
            )
        path = path.resolve()
        source = _folder(path, name=_slug(path.name), citation=f"pictures in {printable(path)}")
    if test_data is not None:
        source = _with_test(source, test_data)
    _check_same_classes(source)
    return source


def class_folders(folder: Path) -> dict[str, Path]:
    """Class name -> its folder, sorted by name. Hidden folders and `__MACOSX` are no classes.

    Raises DataError: a name is blank, two names differ only in case, Unicode form, or spaces and dots around them (on
    macOS or Windows they would be one folder, and nobody tells them apart in a table), or a class folder is a link that
    leads out of `folder`, whose pictures would silently be missing.
    """
    found = {path.name: path for path in _folders_in(folder)}
    seen: dict[str, str] = {}
    for name, path in found.items():
        if not name.strip():
            raise DataError(f"a class needs a name, but {printable(folder)} has a folder named {name!r}; rename it")
        alike = unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold()).strip(" .")
        if alike in seen:
            raise DataError(
                f"class names must differ in more than case, spaces and dots, but {printable(folder)} has "
                f"'{printable(seen[alike])}' and '{printable(name)}'; rename or merge them"
            )
        seen[alike] = name
        if path.is_symlink() and not path.resolve().is_relative_to(folder):
            raise DataError(
                f"a class folder must lie inside its data set, but {printable(path)} is a link to "
                f"{printable(path.resolve())}; copy the folder there, or remove the link"
            )
    return found


def _field_guide(cache_dir: Path, pictures: int | None, track: Track) -> Source:
    from data import field_guide

    total = sum(field_guide.GENERA.values())
    wanted = total if pictures is None else pictures
    # A folder per size of set: in a shared one a small set would find the pictures of a larger one drawn before.
    folder = cache_dir / "field-guide" / f"{wanted}-v{field_guide.VERSION}"
    folder = field_guide.write(folder, wanted, track=track).resolve()
    citation = "the built-in field guide: drawn by procedure, no photographs"
    return Source(name=FIELD_GUIDE, root=folder, parts={"all": folder}, available=total, citation=citation)


def _download_kaggle() -> Path:
    by_hand = f"or download and unpack https://www.kaggle.com/datasets/{KAGGLE_HANDLE} and pass the folder with --data"
    try:
        kagglehub = importlib.import_module("kagglehub")
    except ModuleNotFoundError as error:
        raise DataError(
            f"--data kaggle needs the package kagglehub, which is not installed; pip install -e '.[kaggle]', {by_hand}"
        ) from error
    download = cast(Callable[[str], str], kagglehub.dataset_download)
    try:
        return Path(download(KAGGLE_HANDLE)).resolve()
    except Exception as error:  # kagglehub's errors, those of requests and of the file system share no other base
        reason = printable((str(error).strip() or type(error).__name__).splitlines()[0])[:160]
        raise DataError(
            f"--data kaggle could not download {KAGGLE_HANDLE} ({reason}); check the network and the credentials "
            f"(KAGGLE_USERNAME and KAGGLE_KEY, or ~/.kaggle/kaggle.json), {by_hand}"
        ) from error


def _folder(path: Path, *, name: str, citation: str) -> Source:
    if not path.is_dir():
        raise DataError(
            f"--data must be a folder of class folders, but {printable(path)} is a file; if it is an archive, unpack it"
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
    """The parts, if `root` has a train folder and another; `train` alone may be a class of vehicles."""
    parts: dict[str, Path] = {}
    for folder in _folders_in(root):
        part = PART_FOLDERS.get(folder.name.casefold())
        if part in parts:
            raise DataError(
                f"a data set has one {part} part, but {printable(root)} has '{parts[part].name}' and '{folder.name}'; "
                "remove one"
            )
        if part and _folders_in(folder):
            parts[part] = folder.resolve()
    return parts if "train" in parts and len(parts) > 1 else None


def _with_test(source: Source, test_data: Path) -> Source:
    if "test" in source.parts:
        raise DataError(
            f"there is one test part, but {printable(source.root)} has its own and --test-data gives "
            f"{printable(test_data)}; leave out --test-data, or pass {printable(source.parts['train'])} with --data"
        )
    if not test_data.expanduser().is_dir():
        raise DataError(f"--test-data must be a folder of class folders, but {printable(test_data)} is not a folder")
    folder = test_data.expanduser().resolve()
    inside = _folders_in(folder)
    if len(inside) == 1 and _folders_in(inside[0]):
        folder = inside[0].resolve()
    _check_classes(folder)
    for part in source.parts.values():
        if folder.is_relative_to(part) or part.is_relative_to(folder):
            raise DataError(
                f"--test-data must lie apart from --data, but {printable(folder)} and {printable(part)} "
                "are one inside the other; move the test pictures out"
            )
    training = {"train" if part == "all" else part: path for part, path in source.parts.items()}
    return Source(
        name=source.name,
        root=source.root,
        parts={**training, "test": folder},
        available=source.available,
        citation=source.citation,
    )


def _check_classes(folder: Path) -> None:
    classes = list(class_folders(folder))
    if len(classes) >= 2:
        return
    files = sum(1 for path in folder.iterdir() if path.is_file() and not is_hidden(path.name))
    found = f"only '{printable(classes[0])}'" if classes else "none"
    raise DataError(
        f"a data set needs at least 2 class folders, but {printable(folder)} has {found} and {files} files beside; "
        "put the pictures of each class in a folder of its own"
    )


def _check_same_classes(source: Source) -> None:
    names = {part: set(class_folders(folder)) for part, folder in source.parts.items()}
    first = next(iter(names))
    for part, classes in names.items():
        if classes != names[first]:
            raise DataError(
                f"all parts need the same classes, but {_some(names[first] - classes)} only in "
                f"{printable(source.parts[first])} and {_some(classes - names[first])} only in "
                f"{printable(source.parts[part])}; rename, add or remove folders"
            )


def _some(names: Iterable[str]) -> str:
    ordered = [f"'{printable(name)}'" for name in sorted(names)]
    more = f" and {len(ordered) - 3} more are" if len(ordered) > 3 else " is" if len(ordered) == 1 else " are"
    return ", ".join(ordered[:3]) + more if ordered else "none is"


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    except OSError as error:
        raise DataError(
            f"every data folder must be readable, but {printable(folder)} is not ({error.strerror}); mend its rights"
        ) from error


def _slug(name: str) -> str:
    slug = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", name).lower()).strip("-")
    return slug[:LONGEST].strip("-") or "pictures"
