"""The split: disjoint, complete, near-duplicates on one side, and stable when pictures are added or renamed."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NAMES, class_folders, large_catalog, made_up_catalog, made_up_picture, picture, scanned
from PIL import ImageEnhance

from data import DataError
from data.catalog import MIN_KEPT, Catalog
from data.findings import look_alikes
from data.split import PART_SHARES, split

hashes = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")


@st.composite
def catalogs(draw: st.DrawFn, least: int = MIN_KEPT) -> Catalog:
    """Draw two to four classes of 10 to 60 pictures; up to a fifth are grouped with another, of their class or not."""
    contents = draw(st.lists(hashes, min_size=4 * least, max_size=120, unique=True))
    classes = NAMES[: draw(st.integers(2, 4))]
    group_of = dict(zip(contents, contents, strict=True))
    for _ in range(draw(st.integers(0, len(contents) // 5))):
        a, b = draw(st.sampled_from(contents)), draw(st.sampled_from(contents))
        joined = min(group_of[a], group_of[b])
        old = {group_of[a], group_of[b]}
        group_of = {content: joined if group in old else group for content, group in group_of.items()}
    return made_up_catalog(
        [
            made_up_picture(content, classes[number % len(classes)], group_of[content])
            for number, content in enumerate(contents)
        ]
    )


def sides(catalog: Catalog) -> dict[str, str] | None:
    """Return each content hash's part; None where groups are so large that a class cannot be in all parts."""
    try:
        parts = split(catalog)
    except DataError:
        assert min(len({p.group for p in catalog.kept if p.label == name}) for name in catalog.classes) < 12
        return None
    return {catalog.kept[p].content_hash: name for name, positions in parts.named() for p in positions}


@settings(max_examples=40)
@given(catalogs(), st.randoms(use_true_random=False))
def test_the_split_is_disjoint_and_complete_keeps_groups_whole_and_ignores_order(catalog: Catalog, random):
    where = sides(catalog)
    if where is None:
        return
    parts = split(catalog)
    every = np.concatenate([positions for _, positions in parts.named()])
    assert sorted(every.tolist()) == list(range(len(catalog.kept)))
    assert all((np.diff(positions) > 0).all() for _, positions in parts.named())
    for name in catalog.classes:
        assert {where[p.content_hash] for p in catalog.kept if p.label == name} == set(PART_SHARES)
    for group in {p.group for p in catalog.kept}:
        assert len({where[p.content_hash] for p in catalog.kept if p.group == group}) == 1
    shuffled = list(catalog.pictures)
    random.shuffle(shuffled)
    again = replace(catalog, pictures=tuple(shuffled))
    assert sides(again) == where and again.fingerprint == catalog.fingerprint


@settings(max_examples=40)
@given(catalogs(), st.lists(hashes, max_size=30, unique=True))
def test_added_pictures_move_old_ones_only_to_fill_empty_parts(catalog: Catalog, added: list[str]):
    new = [content for content in added if all(content != p.content_hash for p in catalog.pictures)]
    added_pictures = tuple(made_up_picture(content, catalog.classes[0], content) for content in new)
    larger = replace(catalog, pictures=catalog.pictures + added_pictures)
    before, after = sides(catalog), sides(larger)
    if before is None or after is None:
        return
    moved = {p.group for p in catalog.kept if before[p.content_hash] != after[p.content_hash]}
    # Per class, up to two empty parts are given one group each, and any of these moves may come or go.
    assert len(moved) <= 2 * 2 * len(catalog.classes)


def test_large_classes_are_split_70_15_15_and_never_moved():
    catalog = large_catalog(6000)
    where = sides(catalog)
    assert where is not None
    for name in catalog.classes:
        found = Counter(where[p.content_hash] for p in catalog.kept if p.label == name)
        for part, share in PART_SHARES.items():
            assert abs(found[part] / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5
    fewer = sides(replace(catalog, pictures=catalog.pictures[:3000]))
    assert fewer is not None and fewer.items() <= where.items()


def test_subsets_nest_keep_proportions_and_sides():
    catalog = large_catalog(1000)
    rare = [p for p in catalog.pictures if p.label == NAMES[2]][:30]
    catalog = replace(catalog, pictures=tuple(p for p in catalog.pictures if p.label != NAMES[2]) + tuple(rare))
    everything = sides(catalog)
    assert everything is not None
    previous: set[str] = set()
    for number in (40, 41, 100, 333, 500):
        subset = catalog.limited(number)
        chosen = {p.content_hash for p in subset.kept}
        counts = Counter(p.label for p in subset.kept)
        assert len(chosen) == number and previous <= chosen and min(counts.values()) >= MIN_KEPT
        previous = chosen
        where = sides(subset)
        assert where is not None and sum(where[content] != everything[content] for content in chosen) <= 6
    assert counts[NAMES[0]] == pytest.approx(500 * 334 / 697, abs=2)
    assert catalog.limited(None) is catalog and catalog.limited(10_000) is catalog


def test_with_an_official_validation_part_only_the_test_part_is_taken_from_train(tmp_path: Path):
    class_folders(tmp_path / "set" / "train", each=20)
    for label, name in enumerate(NAMES[:3]):
        (tmp_path / "set" / "val" / name).mkdir(parents=True)
        picture(800, label=label).save(tmp_path / "set" / "val" / name / "v.jpg")
    catalog = scanned(tmp_path / "set", tmp_path / "cache")
    parts = split(catalog)
    assert {catalog.kept[p].part for p in parts.validation} == {"validation"} and len(parts.validation) == 3
    assert {catalog.kept[p].label for p in parts.test} == set(NAMES[:3])


def test_a_class_of_look_alikes_is_split_like_any_other(tmp_path: Path):
    """It was refused as "1 distinct picture", as were the pictures of a production line."""
    root = class_folders(tmp_path / "set")
    for seed in range(12):
        ImageEnhance.Brightness(picture(0, label=1)).enhance(1 + seed / 50).save(root / "Amanita" / f"{seed:04d}.jpg")
    catalog = scanned(root, tmp_path / "cache")
    (scene,) = look_alikes(catalog).scenes
    assert len(scene) == 12 and {p.label for p in scene} == {"Amanita"}
    assert all(len(set(catalog.labels[positions])) == 3 for _, positions in split(catalog).named())


@pytest.mark.parametrize(("pictures", "fix"), [(12, "--near-duplicates keep"), (2, "remove the folder")])
def test_a_class_that_cannot_be_in_every_part_is_an_error_that_names_the_cause(pictures: int, fix: str):
    others = large_catalog(60).pictures
    few = [made_up_picture(f"{n:032x}", "few", f"{n // 6:032x}") for n in range(pictures)]
    with pytest.raises(DataError, match=rf"'few' .*\({pictures} pictures.*train, validation, test.* {fix}$"):
        split(made_up_catalog([*others, *few]))
