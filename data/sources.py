"""Sources of pictures: turns a name or a path into a `Source`.

`field-guide` is drawn into the cache folder, `kaggle` is downloaded by kagglehub, anything else is a path. A path may
have one of these layouts, also inside one or two enclosing folders (`Mushrooms/<class>/...`, as archives unpack):

    <class>/...                                parts {"all"}
    train/<class>/..., test/<class>/...        parts {"train", "test"}, or "validation", or all three
    <class>/train/..., <class>/test/...        the same

`data.layout` tells them apart and refuses what can be understood in two ways; `--parts` then says what it is. Only
folders and names are read here; the catalog opens the files.
"""

import importlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from data import DataError, Track, expanded, layout, no_track
from data.layout import Layout
from model.files import printable

FIELD_GUIDE, KAGGLE = NAMES = ("field-guide", "kaggle")
"""Values of `--data` that are names rather than paths."""

KAGGLE_HANDLE = "maysee/mushrooms-classification-common-genuss-images"

LONGEST = 60
"""Largest number of characters in a study's default name: names derived from it must fit into a folder's 255 bytes."""


@dataclass(frozen=True, kw_only=True)
class Source(Layout):
    """A data set on disk with a known layout."""

    name: str
    """Default name of a study of these pictures: lower-case letters and digits of any script, and dashes."""
    available: int | None
    """Number of pictures that the source can provide, if known without scanning the folder."""
    citation: str
    """Origin of the pictures in one line, for reports and model cards."""
    follow_links: bool = False
    """Whether links are followed wherever they lead; else those that lead out of the data set are refused."""


def resolve(
    data: str,
    *,
    cache_dir: Path,
    pictures: int | None,
    test_data: Path | None = None,
    parts: str | None = None,
    follow_links: bool = False,
    track: Track = no_track,
) -> Source:
    """Return the source named by `data`: "field-guide", "kaggle", or a path (`./kaggle` is a folder of that name).

    `pictures` is the number that the field guide draws, None for its full set; other sources ignore it, as
    `Catalog.limited` selects from them later. `test_data` is a folder that becomes the official test set. `parts` says
    where the parts are, as `layout.stated` explains; by default the folders tell.
    Raises DataError for a missing folder, an unknown layout, classes that do not match, or a failed download.
    """
    available = None
    if data == FIELD_GUIDE:
        from data import field_guide

        available = sum(field_guide.GENERA.values())
        name, citation = FIELD_GUIDE, "the built-in field guide: procedural drawings, not photographs"
        path = _field_guide(cache_dir, pictures, track)
    elif data == KAGGLE:
        name, citation = KAGGLE, f"Kaggle data set {KAGGLE_HANDLE}"
        path = _download_kaggle()
    else:
        path = _path(data)
        name, citation = _slug(path.name), f"pictures in {printable(path)}"
    if parts is None:
        found = layout.understand(path, follow_links=follow_links)
    else:
        found = layout.stated(path, parts, follow_links=follow_links)
    source = Source(
        **vars(found),
        name=name,
        available=available,
        citation=citation,
        follow_links=follow_links,
    )
    if test_data is not None:
        source = _with_test(source, test_data)
    layout.check_same_classes(source)
    return source


def _field_guide(cache_dir: Path, pictures: int | None, track: Track) -> Path:
    from data import field_guide

    wanted = field_guide.DEFAULT_TOTAL if pictures is None else pictures
    # One folder per total: in a shared one, a small set would contain the pictures of a larger one drawn earlier.
    folder = cache_dir / "field-guide" / f"{wanted}-v{field_guide.VERSION}"
    return field_guide.write(folder, wanted, track=track).resolve()


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


def _path(data: str) -> Path:
    path = expanded(Path(data))
    if not data or not path.exists():
        reason = f"there is no {printable(path.absolute())}" if data else "empty"
        raise DataError(
            f"cannot find --data '{printable(data)}' ({reason}): pass a folder of class folders, 'field-guide' or "
            "'kaggle'"
        )
    path = path.resolve()
    if not path.is_dir():
        raise DataError(
            f"--data {printable(path)} is a file: pass a folder of class folders; if this is an archive, unpack it"
        )
    return path


def _with_test(source: Source, test_data: Path) -> Source:
    if "test" in source.parts:
        raise DataError(
            f"{printable(source.root)} has a test set of its own, but --test-data gives {printable(test_data)}: omit "
            f"--test-data, or pass {printable(source.parts['train'])} with --data"
        )
    folder = expanded(test_data)
    if not folder.is_dir():
        raise DataError(f"--test-data {printable(test_data)} is not a folder: pass a folder of class folders")
    test = layout.understand(folder.resolve(), follow_links=source.follow_links)
    if set(test.parts) != {"all"}:
        raise DataError(
            f"--test-data {printable(folder)} has parts of its own ({', '.join(test.parts)}): pass the folder of its "
            "test set"
        )
    for part in source.parts:
        for level in source.levels(part):
            if test.root.is_relative_to(level) or level.is_relative_to(test.root):
                raise DataError(
                    f"--test-data {printable(test.root)} and --data {printable(level)} overlap: move the test pictures "
                    "out"
                )
    training = {"train" if part == "all" else part: path for part, path in source.parts.items()}
    classes = {"train" if part == "all" else part: folders for part, folders in source.classes.items()}
    return replace(source, parts={**training, "test": test.root}, classes={**classes, "test": test.classes["all"]})


def _slug(name: str) -> str:
    slug = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", name).lower()).strip("-")
    return slug[:LONGEST].strip("-") or "pictures"
