"""Sources: what `--data` may name, which layouts are understood, and the errors for everything else."""

import sys
from pathlib import Path

import pytest
from pictures import class_folders, picture

from data import DataError, field_guide
from data.layout import class_folders as classes_in
from data.sources import resolve
from model.files import printable


def found(data: str | Path, tmp_path: Path, test_data: Path | None = None):
    return resolve(str(data), cache_dir=tmp_path / "cache", pictures=None, test_data=test_data)


def refusal(data: str | Path, tmp_path: Path, test_data: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        found(data, tmp_path, test_data)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_of_class_folders_is_one_part(tmp_path: Path):
    root = class_folders(tmp_path / "My Photos_2", each=1)
    source = found(root, tmp_path)
    assert source.parts == {"all": root.resolve()}
    assert (source.name, source.available) == ("my-photos-2", None)


@pytest.mark.parametrize("enclosing", ["Mushrooms", "Mushrooms/Mushrooms"])
def test_enclosing_folders_are_stepped_through(tmp_path: Path, enclosing: str):
    class_folders(tmp_path / "set" / enclosing, each=1)
    (tmp_path / "set" / "__MACOSX").mkdir()
    (tmp_path / "set" / "README.txt").touch()
    assert found(tmp_path / "set", tmp_path).root == (tmp_path / "set" / enclosing).resolve()


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_official_parts_are_recognised(tmp_path: Path, validation: str):
    for folder in ("Train", "test", validation):
        class_folders(tmp_path / "set" / folder, each=1)
    (tmp_path / "set" / "models").mkdir()
    parts = found(tmp_path / "set", tmp_path).parts
    assert {part: folder.name for part, folder in parts.items()} == {
        "train": "Train",
        "test": "test",
        "validation": validation,
    }


def test_train_without_other_parts_is_a_class(tmp_path: Path):
    class_folders(tmp_path / "set", each=1)
    (tmp_path / "set" / "train").mkdir()  # a locomotive
    assert list(found(tmp_path / "set", tmp_path).parts) == ["all"]


def test_test_data_becomes_the_test_part(tmp_path: Path):
    root, test = class_folders(tmp_path / "set", each=1), class_folders(tmp_path / "official", each=1)
    assert found(root, tmp_path, test).parts == {"train": root.resolve(), "test": test.resolve()}


def test_the_field_guide_is_drawn_into_the_cache_folder(tmp_path: Path):
    root = tmp_path / "field-guide" / f"126-v{field_guide.VERSION}"
    for genus, number in field_guide.counts(126).items():  # all but the last are there already: drawing takes time
        (root / genus).mkdir(parents=True)
        for index in range(1, number + 1):
            (root / genus / f"{genus}_{index:04d}.jpg").touch()
    (root / "Suillus" / "Suillus_0014.jpg").unlink()
    source = resolve("field-guide", cache_dir=tmp_path, pictures=126)
    assert (source.root, source.available) == (root.resolve(), 6714)
    assert (root / "Suillus" / "Suillus_0014.jpg").stat().st_size > 0


def test_what_is_not_there_is_refused(tmp_path: Path):
    for data in (tmp_path / "nowhere", ""):
        text = refusal(data, tmp_path)
        assert f"--data '{data}'" in text and "'field-guide' or 'kaggle'" in text


def test_a_file_is_refused(tmp_path: Path):
    (tmp_path / "set.zip").touch()
    text = refusal(tmp_path / "set.zip", tmp_path)
    assert f"--data {tmp_path / 'set.zip'} is a file" in text and "unpack" in text


def test_a_folder_of_loose_pictures_is_refused(tmp_path: Path):
    (tmp_path / "loose").mkdir()
    for seed in range(3):
        picture(seed).save(tmp_path / "loose" / f"{seed}.jpg")
    text = refusal(tmp_path / "loose", tmp_path)
    assert str(tmp_path / "loose") in text and "no class folder and 3 files" in text


def test_one_class_is_refused(tmp_path: Path):
    class_folders(tmp_path / "set", classes=1, each=1)
    text = refusal(tmp_path / "set", tmp_path)
    assert str(tmp_path / "set") in text and "only one class folder, 'Agaricus'" in text and "0 files" in text


def test_parts_with_other_classes_are_refused(tmp_path: Path):
    root = class_folders(tmp_path / "set", classes=3, each=1)
    test = class_folders(tmp_path / "official", classes=2, each=1)
    (test / "Boletes").mkdir()
    text = refusal(root, tmp_path, test)
    assert f"only in {root}: 'Boletus'" in text and f"only in {test}: 'Boletes'" in text


def test_test_data_inside_data_is_refused(tmp_path: Path):
    root = class_folders(tmp_path / "set", each=1)
    text = refusal(root, tmp_path, root)
    assert f"--test-data {root}" in text and f"--data {root}" in text


def test_test_data_that_is_not_there_is_refused(tmp_path: Path):
    root = class_folders(tmp_path / "set", each=1)
    assert f"--test-data {tmp_path / 'nowhere'}" in refusal(root, tmp_path, tmp_path / "nowhere")


def test_two_test_parts_are_refused(tmp_path: Path):
    for folder in ("set/train", "set/test", "official"):
        class_folders(tmp_path / folder, each=1)
    text = refusal(tmp_path / "set", tmp_path, tmp_path / "official")
    assert str(tmp_path / "set") in text and f"--test-data gives {tmp_path / 'official'}" in text


def test_class_names_that_differ_only_in_case_or_form_are_refused(tmp_path: Path):
    root = class_folders(tmp_path / "set", each=1)
    (root / "agaricus").mkdir(exist_ok=True)
    if len(list(root.iterdir())) == 3:
        pytest.skip("this file system ignores case")
    assert "'Agaricus' and 'agaricus'" in refusal(root, tmp_path)
    (root / "agaricus").rmdir()
    (root / "Caf\u00e9").mkdir()
    (root / "Cafe\u0301").mkdir()
    assert "'Cafe\u0301' and 'Caf\u00e9'" in refusal(root, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_a_blank_class_name_is_refused(tmp_path: Path):
    root = class_folders(tmp_path / "set", each=1)
    (root / " ").mkdir()
    text = refusal(root, tmp_path)
    assert str(root) in text and "' '" in text


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_class_that_is_a_link_out_is_refused_and_a_linked_data_set_is_not(tmp_path: Path):
    root = class_folders(tmp_path / "set", each=1)
    (tmp_path / "link").symlink_to(root)
    assert found(tmp_path / "link", tmp_path).root == root.resolve()
    (tmp_path / "Outside").mkdir()
    (root / "Outside").symlink_to(tmp_path / "Outside")
    text = refusal(root, tmp_path)
    assert str(root / "Outside") in text and f"to {tmp_path / 'Outside'}" in text


def test_hidden_folders_are_not_classes(tmp_path: Path):
    root = class_folders(tmp_path / "set", each=1)
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    assert list(classes_in(root)) == ["Agaricus", "Amanita", "Boletus"]


def test_control_characters_in_names_are_escaped():
    assert printable("a\nb\x1b[31m\udcff") == "a\\nb\\x1b[31m\\udcff"
    assert printable("Pfifferling é 茸") == "Pfifferling é 茸"


def test_kaggle_without_its_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # as if it were not installed
    text = refusal("kaggle", tmp_path)
    assert "pip install -e '.[kaggle]'" in text and "pass the folder with --data" in text


def kagglehub_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package of that name whose download runs this line of code."""
    folder.mkdir()
    (folder / "kagglehub.py").write_text(f"def dataset_download(handle):\n    {does}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "kagglehub", raising=False)


def test_a_failed_download_is_one_line_that_says_how_to_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kagglehub_that("raise OSError('no route to host\\nmore')", tmp_path / "fake", monkeypatch)
    text = refusal("kaggle", tmp_path)
    assert "(no route to host)" in text and "KAGGLE_KEY" in text and "pass the folder with --data" in text


def test_a_download_is_read_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class_folders(tmp_path / "versions" / "1" / "Mushrooms", each=1)
    kagglehub_that(f"return {str(tmp_path / 'versions' / '1')!r}", tmp_path / "fake", monkeypatch)
    source = found("kaggle", tmp_path)
    assert source.name == "kaggle" and source.root.name == "Mushrooms"
