"""`clean`: lists studies and caches with their sizes, and removes those that are named and nothing else, ever."""

import os
from pathlib import Path

import pytest

from tuning import StudyError, cleaning
from tuning.lock import sole_coordinator

FINGERPRINT = "0123456789abcdef" * 2


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for study, size in [("mushrooms", 300), ("birds", 50)]:
        write(tmp_path / "results" / study / "study.lock", 0)
        write(tmp_path / "results" / study / "trials" / "0000" / "best.pt", size)
    write(tmp_path / "results" / "README.md", 7)
    write(tmp_path / "results" / "my own notes" / "trials" / "of life.txt", 9)
    return tmp_path / "results"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write(tmp_path / "cache" / "pictures" / FINGERPRINT / "32.npy", 1000)
    write(tmp_path / "cache" / "scans" / "ab.npz", 20)
    write(tmp_path / "cache" / "field-guide" / "1500" / "Agaricus" / "Agaricus_0001.jpg", 500)
    write(tmp_path / "cache" / "pictures" / "holiday" / "beach.jpg", 5)
    write(tmp_path / "cache" / "taxes" / "2025.pdf", 5)
    return tmp_path / "cache"


def everything(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_studies_and_caches_are_listed_with_their_sizes(results: Path, cache: Path) -> None:
    assert {item.name: item.size for item in cleaning.find(results, cache)} == {
        "birds": 50,
        "mushrooms": 300,
        "cache/field-guide": 500,
        "cache/pictures": 1000,
        "cache/scans": 20,
    }


def test_only_what_is_named_is_removed(results: Path, cache: Path) -> None:
    before = everything(results, cache)
    for item in cleaning.choose(cleaning.find(results, cache), ["mushrooms", "cache/scans"]):
        cleaning.remove(item)
    gone = {path.relative_to(results.parent).as_posix() for path in before - everything(results, cache)}
    assert gone == {"results/mushrooms/study.lock", "results/mushrooms/trials/0000/best.pt", "cache/scans/ab.npz"}
    assert not (results / "mushrooms").exists()


def test_a_users_own_files_stay_even_in_the_folders_that_are_named(results: Path, cache: Path) -> None:
    """`--cache ~` once listed every folder of a home as a cache, ready to be removed."""
    items = cleaning.find(results, cache)
    for item in items:
        cleaning.remove(item)
    left = {path.relative_to(results.parent).as_posix() for path in everything(results, cache)}
    assert left == {
        "results/README.md",
        "results/my own notes/trials/of life.txt",
        "cache/pictures/holiday/beach.jpg",
        "cache/taxes/2025.pdf",
    }
    assert cleaning.find(results, cache) == []


@pytest.mark.parametrize("name", ["..", ".", "", "/", "../results", "README.md", "cache/taxes", "my own notes"])
def test_a_name_that_is_not_listed_is_refused_before_anything_is_removed(name: str, results: Path, cache: Path) -> None:
    with pytest.raises(StudyError) as caught:
        cleaning.choose(cleaning.find(results, cache), ["mushrooms", name])
    assert f"'{name}'" in str(caught.value)
    assert "birds, mushrooms, cache/field-guide, cache/pictures, cache/scans" in str(caught.value)


def test_without_names_nothing_is_chosen(results: Path, cache: Path) -> None:
    assert cleaning.choose(cleaning.find(results, cache), []) == []


def test_a_name_given_twice_is_removed_once(results: Path, cache: Path) -> None:
    """The second removal once found no folder and ended the command with an error."""
    items = cleaning.choose(cleaning.find(results, cache), ["birds", "birds"])
    assert [item.name for item in items] == ["birds"]


def test_a_running_study_stays(results: Path, cache: Path) -> None:
    before = everything(results)
    (item,) = cleaning.choose(cleaning.find(results, cache), ["birds"])
    with sole_coordinator(results / "birds"):
        with pytest.raises(StudyError, match=rf"{results / 'birds'} is in use by process {os.getpid()} "):
            cleaning.remove(item)
        assert before <= everything(results)
    cleaning.remove(item)
    assert not (results / "birds").exists()


def test_a_link_to_elsewhere_is_removed_as_a_link(results: Path, cache: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "photo.jpg", 5)
    (results / "birds" / "photos").symlink_to(tmp_path / "elsewhere")
    (cache / "field-guide" / "99").symlink_to(tmp_path / "elsewhere")
    for item in cleaning.find(results, cache):
        cleaning.remove(item)
    assert (tmp_path / "elsewhere" / "photo.jpg").exists()


def test_folders_that_do_not_exist_are_empty(tmp_path: Path) -> None:
    assert cleaning.find(tmp_path / "no results", tmp_path / "no cache") == []
