"""Findings: which pictures look alike, and which parts are far from their share, and why."""

from dataclasses import replace

import numpy as np
from pictures import NAMES, large_catalog, made_up_catalog, made_up_picture

from data.catalog import Catalog
from data.findings import look_alikes, odd_shares
from data.split import Split, split


def with_groups(sizes: list[int], label: str = "defect") -> Catalog:
    """Return a catalog of 300 different pictures in three classes, and a class of groups of these sizes."""
    alike = [
        made_up_picture(f"{group:016x}{number:016x}", label, f"{group:016x}{0:016x}")
        for group, size in enumerate(sizes)
        for number in range(size)
    ]
    return made_up_catalog([*large_catalog(300).pictures, *alike])


def test_groups_and_scenes_are_listed_largest_first():
    catalog = with_groups([1, 2, 5, 1, 3])
    assert [len(group) for group in look_alikes(catalog).groups] == [5, 3, 2]
    same = tuple(replace(p, scene="0" * 32) if p.label == NAMES[0] else p for p in catalog.pictures)
    (scene,) = look_alikes(replace(catalog, pictures=same)).scenes
    assert len(scene) == 100 and {p.label for p in scene} == {NAMES[0]}


def test_a_part_that_is_far_from_its_share_is_found_with_its_cause():
    catalog = with_groups([100, *[1] * 20])
    parts = split(catalog)
    (odd,) = [one for one in odd_shares(catalog, parts) if one.label == "defect"]
    counted = sum(catalog.kept[position].label == "defect" for position in dict(parts.named())[odd.part])
    assert (odd.total, odd.found, len(odd.cause)) == (120, counted, 100) and odd.found >= 100
    uneven = with_groups([2, *[1] * 118])
    positions = [position for position, picture in enumerate(uneven.kept) if picture.label == "defect"]
    rest = np.setdiff1d(np.arange(len(uneven.kept)), positions[-5:])
    few = Split(train=np.array(positions[-5:]), validation=rest, test=rest[:0])
    (odd,) = [one for one in odd_shares(uneven, few) if one.label == "defect"]
    assert (odd.part, odd.found, odd.cause) == ("validation", 115, ())  # a pair explains nothing


def test_an_ordinary_split_is_not_odd():
    for count in (36, 300, 6000):
        catalog = large_catalog(count)
        assert odd_shares(catalog, split(catalog)) == []
        assert look_alikes(catalog).groups == look_alikes(catalog).scenes == look_alikes(catalog).leaks == ()
