"""Preparation: one call reads and splits a data set, another decodes it, and the result says what was found."""

import sys
from pathlib import Path

import pytest
from pictures import altered, class_folders
from PIL import Image

from data import DataError, cache, catalog, expanded, sources
from data.catalog import UnusableDataError
from data.findings import look_alikes
from data.prepare import default_cache, find_pictures, identity
from data.split import split


def test_the_parts_put_together_are_those_taken_one_by_one(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "My Photos")
    pictures = find_pictures(str(root), cache_dir=tmp_path / "cache")
    scanned = catalog.scan(
        sources.resolve(str(root), cache_dir=tmp_path / "cache", pictures=None), cache_dir=tmp_path / "cache"
    )
    assert (pictures.name, pictures.source, pictures.available) == ("my-photos", str(root), 36)
    assert pictures.citation == scanned.source.citation
    assert pictures.catalog == scanned
    for (name, found), (expected_name, expected) in zip(pictures.split.named(), split(scanned).named(), strict=True):
        assert (name, found.tolist()) == (expected_name, expected.tolist())
    handle = pictures.decode(iter([24, 16]), cache_dir=tmp_path / "cache")
    assert handle == cache.build(scanned, split(scanned), [16, 24], cache_dir=tmp_path / "cache")
    assert cache.open_part(handle, 24, "test").images.shape == (36, 24, 24, 3)


def test_a_limit_uses_fewer_pictures_than_there_are(tmp_path: Path) -> None:
    pictures = find_pictures(str(class_folders(tmp_path / "set")), limit=31, cache_dir=tmp_path)
    assert (len(pictures.catalog.kept), pictures.available) == (31, 36)
    assert sum(len(positions) for _, positions in pictures.split.named()) == 31


def test_near_duplicates_are_treated_as_asked(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", size=96)
    altered(Image.open(root / "Boletus" / "0002.jpg"))[0].save(root / "Boletus" / "near.jpg")
    kept = find_pictures(str(root), near_duplicates="keep", cache_dir=tmp_path)
    grouped = find_pictures(str(root), cache_dir=tmp_path)
    assert (kept.near_duplicates, grouped.near_duplicates) == ("keep", "group")
    assert (len(look_alikes(kept.catalog).groups), len(look_alikes(grouped.catalog).groups)) == (0, 1)


def test_an_official_test_set_becomes_the_test_part(tmp_path: Path) -> None:
    root, official = class_folders(tmp_path / "set"), class_folders(tmp_path / "official", each=3, size=40)
    pictures = find_pictures(str(root), test_data=official, cache_dir=tmp_path / "cache")
    assert {pictures.catalog.kept[position].part for position in pictures.split.test} == {"test"}


def test_the_identity_is_the_text_that_stored_studies_hold(tmp_path: Path) -> None:
    pictures = find_pictures(str(class_folders(tmp_path / "set")), cache_dir=tmp_path)
    handle = pictures.decode([16], cache_dir=tmp_path)
    assert identity(pictures, handle) == (
        f"36 pictures, fingerprint {pictures.catalog.fingerprint}, split {handle.split}"
    )


def test_the_default_cache_is_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache().name == "mushroom-study"
    if default_cache().parent == tmp_path:  # elsewhere than on Linux another variable decides
        find_pictures(str(class_folders(tmp_path / "set")))
        assert (tmp_path / "mushroom-study" / "scans").is_dir()


@pytest.mark.skipif(sys.platform != "linux", reason="home folders are found in other ways there")
def test_without_a_home_folder_the_error_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)  # a user id that no user has, as in a container
    with pytest.raises(DataError, match="--cache DIR"):
        default_cache()
    assert expanded(Path("~/pictures")) == Path("~/pictures")


def test_data_that_cannot_be_split_are_refused_with_their_catalog(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", classes=2)
    with pytest.raises(UnusableDataError, match="--pictures") as caught:
        find_pictures(str(root), limit=3, cache_dir=tmp_path)
    assert len(caught.value.catalog.kept) == 24


def test_progress_is_tracked_in_both_steps(tmp_path: Path) -> None:
    totals: list[int] = []

    def track(iterable, description, total):
        totals.append(total)
        return iterable

    root = class_folders(tmp_path / "set")
    find_pictures(str(root), cache_dir=tmp_path, track=track).decode([16], cache_dir=tmp_path, track=track)
    assert totals == [36, 36]


def test_a_data_set_that_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        find_pictures(str(tmp_path / "nowhere"), cache_dir=tmp_path)
