"""Layouts: which folders are parts, which are classes, and what is refused because it could be either."""

import shutil
import string
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data import DataError
from data.layout import PART_WORDS, Layout, part_named
from data.sources import resolve

CLASSES = ("cat", "dog", "fox")


def tree(root: Path, *folders: str, each: int = 3) -> Path:
    """Make `folders` under `root`, with files named like pictures in each, and return `root`."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (root / folder / f"{number}.jpg").touch()
    return root


def grid(outer: Iterable[str], inner: Iterable[str] = CLASSES) -> list[str]:
    return [f"{one}/{two}" for one in outer for two in inner]


def understood(root: Path, parts: str | None = None) -> Layout:
    return resolve(str(root), cache_dir=root, pictures=None, parts=parts)


def refusal(root: Path, parts: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        understood(root, parts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def folders(layout: Layout) -> dict[str, dict[str, list[str]]]:
    """Return the class folders by part and class, relative to the root."""
    return {
        part: {
            name: [folder.relative_to(layout.root).as_posix() for folder in found] for name, found in classes.items()
        }
        for part, classes in layout.classes.items()
    }


# --- names ---


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (
            "train",
            "Training 01-train dataset_train TrainSet trainset train2017 seg_train Entraînement Trainingsdaten 训练集",
        ),
        ("test", "TESTING test_images eval hold-out held_out prueba テスト 테스트"),
        ("validation", "val Valid dev validation_split Validación"),
        (None, "train_val test-dev Testudo valley contest restrain 2020 fold1"),
    ],
)
def test_a_name_says_which_part_a_folder_is(part: str | None, names: str):
    assert {name: part_named(name) for name in names.split()} == dict.fromkeys(names.split(), part)


# --- layouts that are understood ---


@pytest.mark.parametrize("names", ["Training Testing", "dataset_train dataset_eval", "entrenamiento prueba"])
def test_parts_of_any_name_are_recognised_by_their_classes(tmp_path: Path, names: str):
    train, test = names.split()
    tree(tmp_path / "set", *grid([f"images/{train}", f"images/{test}"]))
    found = understood(tmp_path / "set")
    assert folders(found) == {
        "train": {name: [f"{train}/{name}"] for name in CLASSES},
        "test": {name: [f"{test}/{name}"] for name in CLASSES},
    }
    assert found.root == tmp_path / "set" / "images"


def test_parts_that_were_unpacked_into_folders_of_their_own_names_are_recognised(tmp_path: Path):
    tree(tmp_path, *grid(["seg_train/seg_train", "seg_test/seg_test"]), "seg_pred/seg_pred")
    found = understood(tmp_path)
    assert {part: folder.name for part, folder in found.parts.items()} == {"train": "seg_train", "test": "seg_test"}
    assert found.ignored == ((tmp_path / "seg_pred", 3),)


def test_parts_inside_the_class_folders_are_parts(tmp_path: Path):
    tree(tmp_path, *grid(CLASSES, ["train", "val"]))
    (tmp_path / "empty").mkdir()
    assert folders(understood(tmp_path)) == {
        part: {name: [f"{name}/{folder}"] for name in CLASSES} | {"empty": []}
        for part, folder in (("train", "train"), ("validation", "val"))
    }


@pytest.mark.parametrize(
    "made",
    [
        ["animals/cat", "animals/dog", "vehicles/car", "vehicles/bus"],  # superclasses
        ["car", "bus", "train"],
        ["car", "bus", "plane", "train", "test"],
        grid(CLASSES, ["images"]),
        [*grid(CLASSES, ["raw", "edited"]), *CLASSES, *grid(CLASSES, ["more"])],
    ],
)
def test_folders_that_are_classes_are_not_taken_for_parts(tmp_path: Path, made: list[str]):
    tree(tmp_path, *made, each=3)
    for name in CLASSES:  # a class with pictures in the folder itself
        if name in made:
            tree(tmp_path, name, each=12)
    assert set(understood(tmp_path).classes) == {"all"}
    assert set(understood(tmp_path).classes["all"]) == {folder.partition("/")[0] for folder in made}


# --- layouts that are refused ---


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (grid(["site A", "site-b"]), ["'train=site A,test=site-b'", "'all=site A,all=site-b'", "all=."]),
        (grid(["eval 1", "site-b"]), ["'train=site-b,test=eval 1'"]),
        (grid(["a/images", "b/images"]), ["train=a/images,test=b/images", "all=."]),
        (grid([f"fold{number}" for number in range(1, 6)]), ["train=fold1,train=fold2,...,test=fold5", "all=."]),
        (grid(CLASSES, ["2020", "2021"]), ["all=."]),
        (["a/cat", "a/dog", "b/dog", "b/fox"], ["all=a,all=b"]),
        (grid(["train/a", "train/b", "test/a", "test/b"]), ["train=train/a,train=train/b,test=test"]),
        (grid(["2020/train", "2020/test", "2021/train", "2021/test"]), ["train=2020/train,train=2021/train,"]),
        ([*grid(["train"]), "test"], ["all=train", "all=."]),
        (["train/cat", "train/dog", "unknown"], ["all=train", "all=."]),
        (["labelled/cat", "labelled/dog", "test"], ["all=labelled", "all=."]),
        (["train", "test"], ["all=."]),
        (["trainA", "trainB", "testA", "testB"], ["all=."]),
        (grid(["train", "test", "holdout"]), ["train=train,test="]),
        (["cat/train", "cat/test", "dog/train"], ["all=."]),
        (["cat/train", "dog/test"], ["all=."]),
        (grid(CLASSES, ["train", "test", "raw"]), ["all=."]),
        (["x/cat/train", "x/cat/test", "y/dog/a", "y/fox/b"], ["all=."]),
    ],
)
def test_what_can_be_understood_in_two_ways_is_refused_with_the_option(
    tmp_path: Path, made: list[str], options: list[str]
):
    text = refusal(tree(tmp_path, *made))
    assert str(tmp_path) in text
    for option in options:
        assert f"--parts {option}" in text


@pytest.mark.parametrize(
    ("made", "names"),
    [
        ([*grid(["train"]), "test/cat", "test/dog"], ["only in", "'fox'"]),
        ([*grid(["train"]), *grid(["test"]), "test/wolf"], ["'wolf'"]),
        ([*grid(["train"], ["Cat", "Dog"]), *grid(["test"], ["cat", "dog"])], ["'Cat'", "'cat'", "only in case"]),
    ],
)
def test_parts_with_different_classes_are_refused(tmp_path: Path, made: list[str], names: list[str]):
    text = refusal(tree(tmp_path, *made))
    assert all(name in text for name in names)


# --- --parts ---


def test_stated_parts_are_taken_relative_to_the_data_and_several_folders_together(tmp_path: Path):
    tree(tmp_path / "set", *grid(["a", "b", "x,y=z"]))
    tree(tmp_path / "elsewhere", *CLASSES)
    found = understood(tmp_path / "set", f"train=a,train=b,validation=x,y=z,test={tmp_path / 'elsewhere'}")
    assert found.classes["train"]["dog"] == (tmp_path / "set" / "a" / "dog", tmp_path / "set" / "b" / "dog")
    assert found.parts["test"] == tmp_path / "elsewhere" and found.levels("train") == [
        tmp_path / "set" / x for x in "ab"
    ]
    assert set(understood(tmp_path / "set", "all=.").classes["all"]) == {"a", "b", "x,y=z"}


@pytest.mark.parametrize(
    "text",
    ["", "train", "train=a", "train=a,test=", "train=a,tset=b", "all=a,test=b", "train=a,test=nowhere", "test=b"],
)
def test_parts_that_are_not_understood_are_refused_with_the_usage(tmp_path: Path, text: str):
    said = refusal(tree(tmp_path, *grid(["a", "b"])), text)
    assert "--parts" in said and "train=DIR,test=DIR" in said


@pytest.mark.parametrize("text", ["train=a,test=a", "train=.,test=a", "train=a,train=a,test=b"])
def test_stated_parts_that_overlap_are_refused(tmp_path: Path, text: str):
    assert "overlap" in refusal(tree(tmp_path, *grid(["a", "b"])), text)


# --- any tree ---

Truth = Callable[[str], tuple[str, str] | None]
"""Function from a picture's folder to its (part, class), or None if it is in neither."""

names = st.text(string.ascii_lowercase, min_size=4, max_size=5).filter(lambda name: part_named(name) is None)
classes = st.tuples(st.lists(names, min_size=2, max_size=4, unique=True), st.sampled_from(["train", "test", None]))


@st.composite
def part_folders(draw: st.DrawFn) -> dict[str, str]:
    """Draw folder names for train and other parts, by name: a word, decorated; or a name that says nothing."""
    chosen = ["train", *draw(st.lists(st.sampled_from(["test", "validation"]), min_size=1, max_size=2, unique=True))]
    made: dict[str, str] = {}
    for part in chosen:
        word = draw(st.sampled_from(PART_WORDS[part].split()))
        style = draw(st.sampled_from(["{}", "01-{}", "{}_images", "data {}", "{}2017"]))
        made[draw(st.just(style.format(draw(st.sampled_from([word, word.upper(), word.title()])))) | names)] = part
    assume(len(made) == len(chosen))
    return made


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[str], Truth]:
    """Draw the folders of a data set that somebody made, and what they mean."""
    (labels, odd), parts = draw(classes), draw(part_folders())
    labels += [odd] if odd else []  # a class that is named like a part
    others = draw(st.lists(names, min_size=2, max_size=4, unique=True))
    kind = draw(st.sampled_from(["plain", "parts", "inside", "sources", "superclasses", "divided", "unlabelled"]))

    def some() -> list[str]:
        """Return most of the classes, always with the first two: without common ones, these are superclasses."""
        return [name for number, name in enumerate(labels) if number < 2 or draw(st.integers(0, 4))]

    def kept(folder: str, position: int) -> str:
        return folder.split("/")[position]

    if kind == "plain":
        return labels, lambda folder: ("all", folder)
    if kind == "parts":
        made = [f"{part}/{label}" for part in parts for label in some()]
        return made, lambda folder: (parts[kept(folder, 0)], kept(folder, 1))
    if kind == "inside":
        made = [f"{label}/{part}" for part in parts for label in some()]
        return made, lambda folder: (parts[kept(folder, 1)], kept(folder, 0))
    if kind == "sources":
        made = [f"{other}/{label}" for other in others for label in some()]
        return made, lambda folder: ("all", kept(folder, 1))
    if kind == "superclasses":
        made = [f"{label}/{label}-{other}" for label in labels for other in others]
        return made, lambda folder: ("all", kept(folder, 0))
    if kind == "divided":
        made = [f"{label}/{other}" for label in labels for other in others]
        return made, lambda folder: ("all", kept(folder, 0))
    train, *rest = parts
    assume(any(map(part_named, parts)))  # else they may as well be a class with subfolders and one without
    made = [*(f"{train}/{label}" for label in labels), *rest]
    return made, lambda folder: (parts[train], kept(folder, 1)) if "/" in folder else None


@given(made=layouts(), enclosing=st.sampled_from(["", "set/", "set/set/"]))
@settings(max_examples=200, derandomize=True)
def test_any_tree_is_understood_as_it_was_made_or_refused(made: tuple[list[str], Truth], enclosing: str):
    folders, truth = made
    root = Path(tempfile.mkdtemp())
    try:
        tree(root, *(f"{enclosing}{folder}" for folder in folders), each=1)
        try:
            layout = understood(root)
        except DataError:
            return
        found = {
            folder.relative_to(root / enclosing).as_posix(): (part, label)
            for part, classes in layout.classes.items()
            for label, tops in classes.items()
            for top in tops
            for folder in [top, *(inner for inner in top.rglob("*") if inner.is_dir())]
        }
        unused = {folder.relative_to(root / enclosing).as_posix() for folder, _ in layout.ignored}
        for folder in folders:
            said = folder.partition("/")[0] in unused
            assert found.get(folder) == truth(folder) or (said and folder not in found), (folder, folders)
    finally:
        shutil.rmtree(root)
