"""The layout of a data set: which of its folders are official parts, which are classes.

path -> `understand` (reads the folder tree and decides, or refuses) -> `Layout`. `stated` makes one from `--parts`.

The structure decides. Folders that hold folders with the same names can be parts of one data set (`train/<class>`,
`test/<class>`), sources of it (`site-a/<class>`), or classes that are divided alike (`<class>/2024`). The names of the
folders then confirm which is which (`part_named`); where they do not, the layout is refused, and `--parts` says what it
is.
"""

import os
import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from data import DataError, expanded, explained
from data.file_checks import named_like_a_picture
from model.files import is_hidden, printable

ENCLOSING = 2
"""Largest number of enclosing folders to step through. Kaggle's archive has two: `Mushrooms/Mushrooms/`."""

PARTS = ("all", "train", "validation", "test")

PART_WORDS = {
    "train": "train training trn trainval entrainement apprentissage entrenamiento addestramento treino treinamento "
    "обучение 训练 訓練 学習 학습 훈련",
    "validation": "val valid validate validation validating dev development validierung validacion validacao "
    "validazione валидация 验证 驗證 検証 검증",
    "test": "test testing tst eval evaluation holdout heldout prueba teste тест 测试 測試 テスト 테스트",
}
"""Words in folder names that say which part a folder is, casefolded and without accents. Whether "dev" and "eval" mean
validation or test varies; here they mean what they do in Hugging Face's `datasets`."""

_ENDINGS = ("", "s", "set", "sets", "data", "daten", "sdaten", "images", "集")
"""What may follow a word of `PART_WORDS` without a separator, as in "trainset"."""

_PART_OF_WORD = {
    word + ending: part for part, words in PART_WORDS.items() for word in words.split() for ending in _ENDINGS
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The folders of a data set, as they are understood."""

    root: Path
    """Absolute path, inside the enclosing folders."""
    parts: dict[str, Path]
    """Folder that holds each part's class folders: {"all": root}, or "train" with "test" or "validation" or both."""
    classes: dict[str, dict[str, tuple[Path, ...]]]
    """Folders of each class, by part and class name."""
    ignored: tuple[tuple[Path, int], ...] = ()
    """Folders with pictures beside the parts, and the number of pictures in each: they are not used."""

    def __post_init__(self) -> None:
        if set(self.parts) != {"all"} and not ("train" in self.parts and len(self.parts) > 1):
            raise ValueError(f"parts must be all, or train with test or validation, but got {sorted(self.parts)}")

    def levels(self, part: str) -> list[Path]:
        """Return the folders in which the part's class folders lie, sorted."""
        return sorted({folder.parent for folders in self.classes[part].values() for folder in folders})


@dataclass(eq=False, slots=True)
class _Folder:
    """A folder of the tree: its subfolders by name, and how many pictures its files seem to be."""

    path: Path
    folders: dict[str, "_Folder"] = field(default_factory=dict)
    directly: int = 0
    """Number of pictures that lie in the folder itself."""
    pictures: int = 0
    """Number of pictures in the folder and below."""

    @property
    def filled(self) -> dict[str, "_Folder"]:
        """Subfolders that hold pictures."""
        return {name: folder for name, folder in self.folders.items() if folder.pictures}

    @property
    def is_divided(self) -> bool:
        """Whether the pictures are in subfolders: a few beside them, such as a contact sheet, change nothing."""
        return self.directly < self.pictures - self.directly

    def inside(self, levels: int, name: str | None = None) -> "_Folder":
        """Return the folder within up to `levels` enclosing ones, which hold one folder of folders, called `name`."""
        folder = self
        for _ in range(levels):
            only = next(iter(folder.folders.values())) if len(folder.folders) == 1 else None
            if only is None or not only.folders or name not in (None, only.path.name):
                break
            folder = only
        return folder


def part_named(name: str) -> str | None:
    """Return the part that a folder's name says it is, whatever is around the word: "01-Train", "dataset_train".

    Returns None if the name has no such word, or words of several parts.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain))
    words = [unicodedata.normalize("NFKC", word.casefold()) for word in words]
    words += [first + second for first, second in pairwise(words)]  # hold-out
    found = {_PART_OF_WORD[word] for word in words if word in _PART_OF_WORD}
    return found.pop() if len(found) == 1 else None


def understand(path: Path, *, follow_links: bool = False) -> Layout:
    """Return the layout of the data set at `path`, an absolute path.

    Raises DataError if its folders can be understood in more than one way, or cannot be used: fewer than two classes, a
    name that is blank or nearly the same as another's, a link that leads out of the data set unless `follow_links`.
    """
    root = _read_tree(path, follow_links=follow_links).inside(ENCLOSING)
    parts = _official_parts(root, path)
    if not parts and (divided := _parts_in_classes(root, follow_links=follow_links)):
        return divided
    levels = {part: folder.inside(1, folder.path.name) for part, folder in parts.items()} or {"all": root}
    _check_no_parts(levels, path)
    places = {part: level.path.resolve() for part, level in levels.items()}
    return Layout(
        root=root.path.resolve(),
        parts=places,
        classes={part: _classes(part, [place], follow_links=follow_links) for part, place in places.items()},
        ignored=tuple(
            (folder.path, folder.pictures) for folder in root.filled.values() if parts and folder not in parts.values()
        ),
    )


def stated(path: Path, parts: str, *, follow_links: bool = False) -> Layout:
    """Return the layout of the data set at `path` that `parts` states, as `--parts` does: "train=DIR,test=DIR".

    The folders hold class folders, and are relative to `path` or absolute. A part may be named more than once: its
    folders are then taken together. "all=DIR" is a data set without official parts.
    Raises DataError for text or folders that cannot be used.
    """
    usage = "write --parts train=DIR,test=DIR, with validation=DIR if there is one, or --parts all=DIR"
    levels: dict[str, list[Path]] = {}
    for piece in re.split(rf",(?=(?:{'|'.join(PARTS)})=)", parts):
        part, _, name = piece.partition("=")
        if part not in PARTS or not name:
            raise DataError(f"--parts '{printable(parts)}' is not understood at '{printable(piece)}': {usage}")
        folder = path / expanded(Path(name))
        if not folder.is_dir():
            raise DataError(f"--parts names {printable(folder)}, which is not a folder: {usage}")
        levels.setdefault(part, []).append(folder.resolve())
    if set(levels) != {"all"} and not ("train" in levels and "all" not in levels and len(levels) > 1):
        raise DataError(f"--parts '{printable(parts)}' has {' and '.join(levels)}, which is no division: {usage}")
    _check_apart([folder for folders in levels.values() for folder in folders])
    return Layout(
        root=path,
        parts={part: Path(os.path.commonpath(folders)) for part, folders in levels.items()},
        classes={part: _classes(part, folders, follow_links=follow_links) for part, folders in levels.items()},
    )


def _check_apart(folders: Sequence[Path]) -> None:
    """Raise DataError if one of the folders contains another: a picture would be in two parts."""
    for position, folder in enumerate(folders):
        for other in folders[:position]:
            if folder.is_relative_to(other) or other.is_relative_to(folder):
                raise DataError(
                    f"the parts {printable(other)} and {printable(folder)} overlap: name folders that do not contain "
                    "one another"
                )


def check_same_classes(layout: Layout) -> None:
    """Raise DataError unless all parts have the same classes."""
    first, *others = layout.parts
    for part in others:
        only_first = layout.classes[first].keys() - layout.classes[part].keys()
        only_here = layout.classes[part].keys() - layout.classes[first].keys()
        if only_first or only_here:
            alike = {_key(name) for name in only_first} & {_key(name) for name in only_here}
            but = ", which differ only in case, Unicode form, spaces or dots" if alike else ""
            raise DataError(
                f"the parts have different classes (only in {printable(layout.parts[first])}: {_some(only_first)}; "
                f"only in {printable(layout.parts[part])}: {_some(only_here)}{but}): rename, add or remove folders, or "
                f"say with --parts what the folders of {printable(layout.root)} are"
            )


def class_folders(folder: Path, *, follow_links: bool = False) -> dict[str, Path]:
    """Return each class's folder by name, sorted; hidden folders and `__MACOSX` are not classes.

    Raises DataError if a name is blank, if two names differ only in case, Unicode form, or surrounding spaces and dots
    (on macOS or Windows they would be one folder, and in a table they look the same), or if a class folder is a link
    that leads out of `folder` (its pictures would silently be left out) and `follow_links` is False.
    """
    with explained(f"cannot read {printable(folder)}", "change its permissions"):
        found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path.name)}
    _check_names(found, folder)
    for path in found.values():
        if path.is_symlink() and not follow_links and not path.resolve().is_relative_to(folder):
            raise DataError(
                f"class folder {printable(path)} is a link out of the data set, to {printable(path.resolve())}: "
                "add --follow-links, replace the link with a copy of that folder, or remove it"
            )
    return found


def _classes(part: str, levels: Sequence[Path], *, follow_links: bool) -> dict[str, tuple[Path, ...]]:
    """Return the folders of each class of a part. Raises DataError if there are fewer than two classes."""
    found: dict[str, tuple[Path, ...]] = {}
    for level in levels:
        for name, path in class_folders(level, follow_links=follow_links).items():
            found[name] = (*found.get(name, ()), path)
    _check_names(found, levels[0])
    if len(found) < 2:
        folder = levels[0]
        files = sum(1 for path in folder.iterdir() if path.is_file() and not is_hidden(path.name))
        only = f"only one class folder, '{printable(next(iter(found)))}'," if found else "no class folder"
        stating = "" if part == "all" else ", or say with --parts which folders are the parts"
        raise DataError(
            f"{printable(folder)} has {only} and {files} file{'s' * (files != 1)}, but needs at least 2 class folders: "
            f"put the pictures of each class into its own folder{stating}"
        )
    return dict(sorted(found.items()))


def _check_names(names: Iterable[str], folder: Path) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise DataError(f"{printable(folder)} has a class folder with a blank name, {name!r}: rename it")
        alike = _key(name)
        if alike in seen:
            raise DataError(
                f"{printable(folder)} has two classes with nearly the same name ('{printable(seen[alike])}' and "
                f"'{printable(name)}' differ only in case, Unicode form, spaces or dots): rename or merge them"
            )
        seen[alike] = name


def _key(name: str) -> str:
    """Return what names that look the same have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold()).strip(" .")


def _read_tree(path: Path, *, follow_links: bool) -> _Folder:
    """Read the folders under `path` and count the files that seem to be pictures; hidden ones are skipped.

    Links to folders are followed only on the levels of parts and classes, or with `follow_links`; never twice.
    """
    tree = _Folder(path)
    parents: list[tuple[_Folder, _Folder | None, int]] = [(tree, None, 0)]
    top, read = path.resolve(), set[str]()
    for folder, _, depth in parents:
        with explained(f"cannot read {printable(folder.path)}", "change its permissions"):
            entries = sorted(os.scandir(folder.path), key=lambda entry: entry.name)
        for entry in entries:
            if is_hidden(entry.name):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself
                continue
            if not is_folder:
                folder.directly += named_like_a_picture(entry.name) or not os.path.splitext(entry.name)[1]  # noqa: PTH122
                continue
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if target in read or top.is_relative_to(target) or not (follow_links or depth <= ENCLOSING):
                    continue
                read.add(target)
            folder.folders[entry.name] = _Folder(Path(entry.path))
            parents.append((folder.folders[entry.name], folder, depth + 1))
    for folder, parent, _ in reversed(parents):
        folder.pictures += folder.directly
        if parent:
            parent.pictures += folder.pictures
    return tree


def _official_parts(root: _Folder, path: Path) -> dict[str, _Folder]:
    """Return the folders in `root` whose names say that they are parts, if there are train and another one.

    A folder of that name without folders in it is none: `train` may be a class of vehicles. Whether the parts hold the
    same classes is checked later.
    """
    named: defaultdict[str, list[_Folder]] = defaultdict(list)
    for name, folder in root.folders.items():
        if folder.folders and (part := part_named(name)):
            named[part].append(folder)
    parts = {part: named[part][0] for part in PARTS if part in named}
    if "train" not in parts or len(parts) == 1:
        return {}
    for part, folders in named.items():
        if len(folders) > 1:
            found, choice = _some(f.path.name for f in folders), _option(path, {p: [f] for p, f in parts.items()})
            raise DataError(
                f"{printable(root.path)} has {len(folders)} {part} sets ({found}): remove all but one, or say which "
                f"folders are the parts, as in {choice}"
            )
    return parts


def _repeated(level: _Folder) -> set[str]:
    """Return the names of folders with pictures that lie in several folders of `level`.

    Only folders whose pictures are in subfolders count, and a single name is no sign of anything: `<class>/images/...`.
    """
    divided = [folder.inside(1) for folder in level.filled.values() if folder.is_divided]
    counts = Counter(name for folder in divided for name in {_key(name) for name in folder.filled})
    return {name for name, count in counts.items() if count > 1} if len(counts) > 1 else set()


def _divides(names: Iterable[str]) -> bool:
    """Return whether most of the names are those of parts, among them train and another one."""
    parts = [part_named(name) for name in names]
    return {"train"} < {*parts} - {None} and 2 * parts.count(None) < len(parts)


def _parts_in_classes(root: _Folder, *, follow_links: bool) -> Layout | None:
    """Return the layout if each class of `root` is divided into the same parts, as in `<class>/train`; else None.

    Folders that are themselves divided may be something else, as in `<year>/train/<class>`.
    """
    if len(root.filled) < 2 or any(map(part_named, root.filled)):
        return None
    base, classes = root.path.resolve(), dict[str, dict[str, tuple[Path, ...]]]()
    for name, folder in root.filled.items():
        divided = {part_named(inner) or "": found for inner, found in folder.filled.items()}
        whole = len(divided) == len(folder.filled) and not any(found.is_divided for found in divided.values())
        if not whole or not folder.is_divided or "" in divided or (classes and divided.keys() != classes.keys()):
            return None
        for part, found in divided.items():
            classes.setdefault(part, {})[name] = (base / name / found.path.name,)
    if not _divides(classes):
        return None
    for name, folder in class_folders(base, follow_links=follow_links).items():
        class_folders(folder.resolve(), follow_links=follow_links)
        for folders in classes.values():
            folders.setdefault(name, ())  # an empty folder
    return Layout(
        root=base,
        parts=dict.fromkeys(classes, base),
        classes={part: dict(sorted(folders.items())) for part, folders in classes.items()},
    )


def _check_no_parts(levels: Mapping[str, _Folder], path: Path) -> None:
    """Raise DataError if folders of `levels`, each of which holds the class folders of a part, may be parts, too."""
    as_understood = _option(path, {part: [level] for part, level in levels.items()})
    for part, level in levels.items():
        where, filled = printable(level.path), level.filled
        if repeated := _repeated(level):
            alike = [f for f in filled.values() if repeated & {_key(name) for name in f.inside(1).filled}]
            ways = _ways([folder.inside(1) for folder in alike], part, levels, path)
            names = {name for folder in alike for name in folder.inside(1).filled if _key(name) in repeated}
            raise DataError(
                f"{where} can be understood in several ways (its folders {_some(f.path.name for f in alike)} hold "
                f"folders of the same names, {_some(names)}): {ways}, or add {as_understood} if they "
                "are the classes"
            )
        named = [folder for name, folder in filled.items() if part_named(name)]
        whole = [folder for folder in filled.values() if folder.is_divided and len(folder.inside(1).filled) > 1]
        # A train folder of pictures may be a class of vehicles; a test folder beside class folders is unlabelled.
        beside = whole and {*map(part_named, filled)} & {"test", "validation"}
        if _divides(filled) or {*named} & {*whole} or beside:
            alone = f"add {_option(path, {'all': whole[:1]})} to use only that part" if whole else ""
            raise DataError(
                f"{where} can be understood in several ways ({_some(f.path.name for f in named)}: named like parts, "
                "but not all of its folders hold the same class folders): "
                f"{alone or 'put the pictures of each class of a part into their own folder'}, or add {as_understood} "
                "if these folders are the classes"
            )
        generation = list(filled.values())
        while generation:
            below = {name: folder for parent in generation for name, folder in parent.filled.items()}
            if _divides(below) or any(_divides(parent.filled) for parent in generation):
                odd = (f"{folder.path.parent.name}/{name}" for name, folder in below.items() if part_named(name))
                raise DataError(
                    f"{where} has folders named like parts inside its classes, {_some(odd)}: move the parts above the "
                    f"classes, as in train/<class>, or add {as_understood} to take them together"
                )
            generation = [folder for parent in generation for folder in parent.filled.values()]


def _ways(shared: Sequence[_Folder], part: str, levels: Mapping[str, _Folder], path: Path) -> str:
    """Return what to do if the folders `shared` of `part`, which hold folders of the same names, are no classes."""
    inner: defaultdict[str, list[_Folder]] = defaultdict(list)
    for folder in shared:
        for name, found in folder.filled.items():
            if inside := part_named(name):
                inner[inside].append(found)
    if _divides(inner):
        if all(found.is_divided for folders in inner.values() for found in folders):
            return f"add {_option(path, inner)} for the parts inside them"
        return "move the parts above the classes, as in train/<class>"
    others = {name: [level] for name, level in levels.items() if name != part}
    together = f"{_option(path, others | {part: shared})} if they are sources of the same classes"
    if part != "all":
        return f"add {together}"
    *train, test = sorted(shared, key=lambda folder: part_named(folder.path.name) == "test")
    return f"add {_option(path, {'train': train, 'test': [test]})} if they are parts, {together}"


def _option(path: Path, parts: Mapping[str, Iterable[_Folder]]) -> str:
    """Return the option --parts for these folders, each relative to `path`."""
    named = [f"{part}={folder.path.relative_to(path).as_posix()}" for part in PARTS for folder in parts.get(part, ())]
    if len(named) > 4:
        named = [*named[:2], "...", named[-1]]
    return f"--parts {shlex.quote(printable(','.join(named)))}"


def _some(names: Iterable[str]) -> str:
    """Return up to three of the names, quoted, and how many more there are."""
    ordered = [f"'{printable(name)}'" for name in sorted(names)]
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more or "none"
