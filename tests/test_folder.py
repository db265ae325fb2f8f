"""A study's folder and the files in it: each error is one line with the path."""

from pathlib import Path

import pytest

from tuning import StudyError
from tuning.folder import make_folder, remove_file, replace_file, study_folder


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "c:", "what?", "a*", "x\0y", "two\nlines", "a|b", "<a>"]
)
def test_a_study_name_that_cannot_name_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        study_folder(tmp_path, name)
    text = str(caught.value)
    assert text.startswith(repr(name)) and "--study NAME" in text and "\n" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mushrooms", "Pilze & Käfer", "蘑菇", "a.b", "-x", "with space"])
def test_any_other_name_is_a_folder(name: str, tmp_path: Path) -> None:
    assert study_folder(tmp_path / "results", name) == tmp_path / "results" / name
    assert (tmp_path / "results" / name / "trials").is_dir()


def test_a_study_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(StudyError) as caught:
        study_folder(tmp_path / "results", "mushrooms")
    text = str(caught.value)
    assert text.startswith(f"cannot write to {tmp_path / 'results' / 'mushrooms'} (Not a directory)")
    assert "--results DIR" in text


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has /proc")
def test_a_study_folder_on_a_file_system_without_writing_is_named() -> None:
    with pytest.raises(StudyError, match=r"/proc/self/mushrooms \(.+\)"):
        study_folder(Path("/proc/self"), "mushrooms")


def test_a_folder_of_pictures_is_not_taken_for_a_studys(tmp_path: Path) -> None:
    """`--data birds --results .` once wrote the study among the class folders."""
    (tmp_path / "birds" / "owl").mkdir(parents=True)
    with pytest.raises(StudyError) as caught:
        study_folder(tmp_path, "birds")
    assert str(tmp_path / "birds") in str(caught.value) and "'owl'" in str(caught.value)
    assert [path.name for path in (tmp_path / "birds").iterdir()] == ["owl"]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "output.txt").touch()  # redirected there by the user
    study_folder(tmp_path, "logs")
    for part in ("trials", "settings.json", "study.db"):
        (tmp_path / part / "plots").mkdir(parents=True)
        (tmp_path / part / part).mkdir()
        study_folder(tmp_path, part)


def test_a_name_too_long_for_the_file_system_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"\(File name too long\)"):
        study_folder(tmp_path, "x" * 300)


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file")
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    for folder in (tmp_path / "plots", tmp_path / "plots" / "deeper"):
        with pytest.raises(StudyError, match=rf"cannot create {folder} \("):
            make_folder(folder)
    assert (tmp_path / "plots").read_text() == "a file"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail_halfway(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    (tmp_path / "file").write_text("old")
    with pytest.raises(StudyError, match=rf"{tmp_path / 'file'} \(disk full\)"):
        replace_file(tmp_path / "file", fail_halfway)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_file_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    file = tmp_path / "old.html"
    file.touch()
    remove_file(file)
    remove_file(file)
    assert not file.exists()
    (tmp_path / "kept").mkdir()
    with pytest.raises(StudyError, match=rf"{tmp_path / 'kept'} \("):
        remove_file(tmp_path / "kept")
