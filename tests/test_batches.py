"""Batches: the contents of an epoch depend only on (seed, epoch), and plain views have the original recipe's share."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augment import AugmentConfig
from data.batches import DevicePictures, EvaluationBatches, TrainingBatches, evaluated_at_once
from data.cache import Part
from model.preprocessing import normalise

CPU = torch.device("cpu")


def part(*counts: int, size: int = 8) -> Part:
    """Return pictures whose first pixel tells their position; `indices` are scattered among other parts' pictures."""
    n = sum(counts)
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n + 7, size, size, 3), dtype=np.uint8)
    indices = np.sort(rng.choice(n + 7, n, replace=False)).astype(np.int64)
    images[indices, 0, 0, 0], images[indices, 0, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    return Part(images=images, indices=indices, labels=labels, classes=len(counts))


def batches(
    of: Part,
    *,
    batch_size: int = 8,
    views: int = 3,
    strength: float = 1.0,
    reuse_originals: bool = True,
    fresh: bool = True,
    oversample: bool = False,
    seed: int = 5,
    flips: bool = True,
) -> TrainingBatches:
    return TrainingBatches(
        of,
        batch_size=batch_size,
        views=views,
        augment=AugmentConfig(strength=strength, reuse_originals=reuse_originals, fresh=fresh, flips=flips),
        oversample=oversample,
        seed=seed,
        device=CPU,
    )


def positions(images: torch.Tensor) -> list[int]:
    """Return the positions of pictures that were not augmented."""
    corner = (images[:, :2, 0, 0] * 0.25 + 0.5) * 255
    return (corner.round().long() * torch.tensor([1, 256])).sum(1).tolist()


def epoch(of: TrainingBatches, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*of.epoch(n), strict=True)
    return torch.cat(images), torch.cat(labels)


def plain_positions(of: TrainingBatches, whole: Part, n: int) -> list[int]:
    """Return the pictures that `plain` says are unchanged in epoch n, after checking their pixels.

    Pixels alone would not tell, because the 3x3 blur with the smallest sigmas changes no bit.
    """
    pictures, views = of.order(n)
    plain = of.plain(pictures, views, n)
    images, _ = epoch(of, n)
    originals = normalise(torch.tensor(whole.images[whole.indices[pictures]]))
    assert torch.equal(images[plain], originals[plain])
    altered = (images != originals).flatten(1).any(1).numpy()
    assert altered[~plain].mean() > 0.9
    return pictures[plain].tolist()


SHAPES = st.fixed_dictionaries(
    {"batch_size": st.integers(2, 40), "views": st.integers(1, 5), "seed": st.integers(0, 2**63)}
)
COUNTS = st.lists(st.integers(1, 20), min_size=2, max_size=4)


@settings(max_examples=60)
@given(COUNTS, SHAPES, st.integers(0, 50))
def test_an_epoch_is_one_permutation_per_view(counts: list[int], shape: dict[str, int], n: int):
    whole = part(*counts)
    images, labels = epoch(batches(whole, strength=0, **shape), n)
    seen = positions(images)
    assert labels.tolist() == whole.labels[seen].tolist()
    for view in range(shape["views"]):
        assert sorted(seen[view * len(whole.labels) : (view + 1) * len(whole.labels)]) == list(range(len(whole.labels)))


@settings(max_examples=60)
@given(COUNTS, SHAPES, st.booleans())
def test_batches_are_full_except_the_last_and_none_has_one_picture(
    counts: list[int], shape: dict[str, int], oversample: bool
):
    of = batches(part(*counts), oversample=oversample, **shape)
    sizes = [len(labels) for _, labels in of.epoch(0)]
    assert len(sizes) == len(of)
    assert sum(sizes) == sum(counts) * shape["views"]
    assert all(size == shape["batch_size"] for size in sizes[:-1])
    assert 2 <= sizes[-1] <= shape["batch_size"] + 1


def test_a_last_batch_of_one_is_joined_to_the_one_before():
    assert [len(labels) for _, labels in batches(part(9, 8), views=1).epoch(0)] == [8, 9]
    assert [len(labels) for _, labels in batches(part(9, 9), views=1).epoch(0)] == [8, 8, 2]


def test_a_batch_size_larger_than_the_set_gives_one_batch():
    of = batches(part(9, 8), views=1, batch_size=1000)
    assert len(of) == 1 and [len(labels) for _, labels in of.epoch(0)] == [17]


@settings(max_examples=25)
@given(COUNTS, SHAPES, st.booleans(), st.booleans(), st.integers(1, 4))
def test_an_epoch_is_the_same_after_a_resume(
    counts: list[int], shape: dict[str, int], oversample: bool, fresh: bool, n: int
):
    whole = part(*counts)
    straight = batches(whole, oversample=oversample, fresh=fresh, **shape)
    for earlier in range(n):
        epoch(straight, earlier)
    resumed = epoch(batches(whole, oversample=oversample, fresh=fresh, **shape), n)
    for one, other in zip(epoch(straight, n), resumed, strict=True):
        assert torch.equal(one, other)


def test_epochs_and_seeds_differ():
    whole = part(20, 20)
    first = epoch(batches(whole), 0)
    for other in (epoch(batches(whole), 1), epoch(batches(whole, seed=6), 0)):
        assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_the_order_does_not_depend_on_the_augmentation_nor_the_batch_size():
    whole = part(20, 20)
    expected = batches(whole).order(3)
    for other in (batches(whole, strength=0), batches(whole, reuse_originals=False), batches(whole, batch_size=3)):
        assert all(np.array_equal(one, two) for one, two in zip(expected, other.order(3), strict=True))


def test_what_a_picture_draws_does_not_depend_on_the_batch_size():
    whole = part(20, 20)
    small, large = (epoch(batches(whole, batch_size=size), 1)[0] for size in (3, 100))
    torch.testing.assert_close(small, large, rtol=0, atol=1e-5)


def test_three_views_are_the_picture_and_two_copies_in_every_epoch():
    whole = part(17, 12)
    for n in range(3):
        assert sorted(plain_positions(batches(whole), whole, n)) == list(range(29))


@pytest.mark.parametrize("views", [1, 2, 4, 5])
def test_any_number_of_views_has_the_original_recipes_share_over_three_epochs(views: int):
    whole = part(17, 12)
    of = batches(whole, views=views)
    each = [plain_positions(of, whole, n) for n in range(3)]
    assert Counter(position for one in each for position in one) == dict.fromkeys(range(29), views)
    assert all(abs(len(one) - 29 * views / 3) <= views for one in each)


def test_without_originals_every_view_is_augmented():
    whole = part(17, 12)
    assert plain_positions(batches(whole, reuse_originals=False), whole, 0) == []


@pytest.mark.parametrize("flips", [True, False])
def test_pictures_are_mirrored_only_if_that_is_allowed(flips: bool):
    whole = part(40)
    shape: dict[str, Any] = {"views": 1, "reuse_originals": False, "flips": flips}
    plain, augmented = (epoch(batches(whole, strength=strength, **shape), 0)[0] for strength in (0.0, 1e-6))
    same = [torch.allclose(a, b, atol=1e-3) for a, b in zip(plain, augmented, strict=True)]
    mirrored = [torch.allclose(a.flip(2), b, atol=1e-3) for a, b in zip(plain, augmented, strict=True)]
    assert sum(same) == 40 - sum(mirrored)
    assert any(mirrored) == flips


def test_fresh_copies_differ_between_epochs_and_fixed_ones_do_not():
    whole = part(11, 9)

    def copies(fresh: bool, n: int) -> set[bytes]:
        return {image.numpy().tobytes() for image in epoch(batches(whole, fresh=fresh, batch_size=60), n)[0]}

    assert copies(False, 0) == copies(False, 4)
    assert len(copies(False, 0)) > 50
    assert 20 <= len(copies(True, 0) & copies(True, 4)) < 30  # plain views, and some that were only flipped


@settings(max_examples=40)
@given(COUNTS, SHAPES, st.integers(0, 9))
def test_oversampling_gives_classes_equal_shares_and_their_pictures_equal_turns(
    counts: list[int], shape: dict[str, int], n: int
):
    whole = part(*counts)
    images, labels = epoch(batches(whole, strength=0, oversample=True, **shape), n)
    total = sum(counts) * shape["views"]
    shares = np.bincount(labels, minlength=len(counts))
    assert shares.sum() == total and shares.max() - shares.min() <= 1
    seen = positions(images)
    assert labels.tolist() == whole.labels[seen].tolist()
    times = np.bincount(seen, minlength=len(whole.labels))
    for label in range(len(counts)):
        of_class = times[whole.labels == label]
        assert of_class.max() - of_class.min() <= 1


def test_an_oversampled_picture_is_augmented_differently_each_time():
    whole = part(1, 29)
    images, labels = epoch(batches(whole, oversample=True, reuse_originals=False), 0)
    rare = images[labels == 0]
    assert len(rare) == 45
    assert len(torch.unique(rare.flatten(1), dim=0)) > 35  # one in twelve is only flipped: these are alike


def test_oversampling_keeps_about_a_third_plain():
    whole = part(5, 40, 75)
    shown = plain_positions(batches(whole, oversample=True), whole, 0)
    assert len(shown) == pytest.approx(120, abs=10)


def test_a_class_without_training_pictures_takes_no_share():
    whole = part(4, 0, 8)
    of = batches(whole, oversample=True, views=1)
    assert of.class_counts == (4, 0, 8)
    assert np.bincount(epoch(of, 0)[1], minlength=3).tolist() == [6, 0, 6]


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_images_are_float32_channels_last_and_labels_int64(strength: float):
    for images, labels in batches(part(9, 8), strength=strength).epoch(0):
        assert images.dtype == torch.float32 and images.shape == (len(labels), 3, 8, 8)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64


def test_evaluation_shows_each_picture_once_in_order_and_plain():
    whole = part(9, 8)
    of = EvaluationBatches(whole, batch_size=5, device=CPU)
    assert len(of) == 4 and of.class_counts == (9, 8)
    for n in (0, 7):
        seen = list(of.epoch(n))
        assert [len(labels) for _, labels in seen] == [5, 5, 5, 2]
        assert torch.cat([labels for _, labels in seen]).tolist() == whole.labels.tolist()
        images = torch.cat([images for images, _ in seen])
        assert torch.equal(images, normalise(torch.tensor(whole.images[whole.indices])))
        assert all(one.is_contiguous(memory_format=torch.channels_last) for one, _ in seen)


def test_pictures_kept_on_the_device_are_the_same_as_gathered_ones():
    whole = part(9, 8)
    needed = 17 * 8 * 8 * 3
    kept, gathered = DevicePictures(whole, CPU, room=needed), DevicePictures(whole, CPU, room=needed - 1)
    assert (kept.resident, gathered.resident, DevicePictures(whole, CPU).resident) == (True, False, False)
    rows = np.array([16, 0, 3, 3], dtype=np.int64)
    for one, other in zip(kept[rows], gathered[rows], strict=True):
        assert torch.equal(one, other)
    assert gathered[rows][0].dtype == torch.uint8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_batch_is_the_cpus():
    whole = part(19, 18)
    options = {"batch_size": 16, "views": 3, "oversample": False, "seed": 1}
    config = AugmentConfig(strength=1, reuse_originals=True, fresh=True)
    device = torch.device("cuda")
    on_gpu = TrainingBatches(whole, augment=config, device=device, **options)
    on_cpu = TrainingBatches(whole, augment=config, device=CPU, **options)
    for (images, labels), (others, other_labels) in zip(on_gpu.epoch(0), on_cpu.epoch(0), strict=True):
        assert images.device.type == labels.device.type == "cuda"
        assert images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(images.cpu(), others, rtol=0, atol=1e-3)
        assert torch.equal(labels.cpu(), other_labels)


@pytest.mark.parametrize(("size", "count"), [(32, 256), (90, 256), (128, 128), (256, 32), (4096, 1)])
def test_fewer_large_pictures_are_evaluated_at_a_time(size: int, count: int):
    assert evaluated_at_once(size) == count


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"views": 0}])
def test_batch_sizes_and_views_below_1_are_refused(values: dict[str, int]):
    with pytest.raises(ValueError, match=r"batch_size=\d+, views=\d+"):
        batches(part(9, 8), **values)
    with pytest.raises(ValueError, match="batch_size=0"):
        EvaluationBatches(part(9, 8), batch_size=0, device=CPU)
