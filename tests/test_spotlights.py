"""Which test pictures the report shows, and where the exported network looked in them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reporting.spotlights import SHOWN, choose


@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 2**31))
@settings(max_examples=60)
def test_the_most_confident_are_shown_and_each_class_comes_once_before_another_comes_twice(
    pictures: int, classes: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shares = torch.randperm(pictures, generator=generator) / (pictures + 1)
    labels = torch.randint(classes, (pictures,), generator=generator)
    among = torch.rand(pictures, generator=generator) < 0.6
    places = choose(shares, labels, among)
    left = {place for place in range(pictures) if among[place]} - set(places)
    assert all(among[place] for place in places)
    assert len(places) == len(set(places)) == min(SHOWN, int(among.sum()))
    shown = [int(labels[place]) for place in places]
    for label in range(classes):
        kept = [float(shares[place]) for place in places if labels[place] == label]
        passed_over = [float(shares[place]) for place in left if labels[place] == label]
        assert kept == sorted(kept, reverse=True)
        if passed_over:
            assert min(kept, default=1) > max(passed_over)
            assert len(kept) >= max(map(shown.count, shown)) - 1
