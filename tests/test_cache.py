"""The picture cache: what it holds, when it is rebuilt, and the errors when it cannot be."""

import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import class_folders, deep_folder, picture, scanned

from data import DataError
from data.cache import build, open_part
from data.catalog import Catalog
from data.split import Split, split
from model.files import replacing
from model.predict import square_of


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return scanned(class_folders(tmp_path / "in"), tmp_path)


def test_each_row_is_what_predict_sees(catalog: Catalog, tmp_path: Path):
    handle = build(catalog, split(catalog), [16, 24], cache_dir=tmp_path)
    for size in (16, 24):
        images = open_part(handle, size, "train").images
        assert images.shape == (len(catalog.kept), size, size, 3)
        for image, file in zip(images, catalog.kept, strict=True):
            assert np.array_equal(image, square_of(catalog.file(file), size, {})[0])


def test_more_than_8_bits_are_scaled_by_the_range_of_the_data_set(tmp_path: Path):
    deep = scanned(deep_folder(tmp_path / "deep"), tmp_path)
    handle = build(deep, split(deep), [32], cache_dir=tmp_path)
    images = open_part(handle, 32, "train").images
    for image, file in zip(images, deep.kept, strict=True):
        if file.path.endswith(".tif"):
            grey = picture(int(Path(file.path).stem), label=deep.classes.index(file.label)).convert("L")
            assert np.array_equal(image[..., 0], np.asarray(grey))
        assert np.array_equal(image, square_of(deep.file(file), 32, deep.ranges)[0])


def test_the_parts_are_the_split_with_the_catalogs_labels(catalog: Catalog, tmp_path: Path):
    parts = split(catalog)
    handle = build(catalog, parts, [16], cache_dir=tmp_path)
    for name in ("train", "validation", "test"):
        part = open_part(handle, 16, name)
        assert np.array_equal(part.indices, getattr(parts, name))
        assert np.array_equal(part.labels, catalog.labels[part.indices])
        assert part.classes == len(catalog.classes)


def test_a_handle_opens_in_another_process(catalog: Catalog, tmp_path: Path):
    handle = build(catalog, split(catalog), [16], cache_dir=tmp_path)
    assert len(pickle.dumps(handle)) < 1000
    assert pickle.loads(pickle.dumps(handle)) == handle


def test_the_memory_map_cannot_be_written(catalog: Catalog, tmp_path: Path):
    images = open_part(build(catalog, split(catalog), [16], cache_dir=tmp_path), 16, "train").images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_two_splits_share_the_pictures(catalog: Catalog, tmp_path: Path):
    parts = split(catalog)
    other = Split(train=parts.train, validation=parts.test, test=parts.validation)
    first, second = (build(catalog, one, [16], cache_dir=tmp_path) for one in (parts, other))
    assert first.directory == second.directory
    assert np.array_equal(open_part(first, 16, "test").indices, open_part(second, 16, "validation").indices)


def test_an_intact_file_is_not_rebuilt(catalog: Catalog, tmp_path: Path):
    handle = build(catalog, split(catalog), [16], cache_dir=tmp_path)
    file = handle.directory / "16.npy"
    before = file.stat()
    build(catalog, split(catalog), [16, 24], cache_dir=tmp_path)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("damage", ["torn", "empty", "another shape", "another type", "no array"])
def test_a_damaged_file_is_rebuilt(catalog: Catalog, tmp_path: Path, damage: str):
    handle = build(catalog, split(catalog), [16], cache_dir=tmp_path)
    file = handle.directory / "16.npy"
    good = file.read_bytes()
    shape = (len(catalog.kept), 16, 16, 3)
    if damage == "another shape":
        np.save(file, np.zeros((1, *shape[1:]), np.uint8))
    elif damage == "another type":
        np.save(file, np.zeros(shape, np.float32))
    else:
        file.write_bytes({"torn": good[:-1], "empty": b"", "no array": b"no array" * 100}[damage])
    with pytest.raises(DataError, match=r"16\.npy .*run the same command again"):
        open_part(handle, 16, "train")
    build(catalog, split(catalog), [16], cache_dir=tmp_path)
    assert file.read_bytes() == good


@pytest.mark.parametrize("damage", ["a flipped bit", "another cache's pixels", "no digest", "another digest"])
def test_altered_pixels_are_decoded_again(catalog: Catalog, tmp_path: Path, damage: str):
    handle = build(catalog, split(catalog), [16], cache_dir=tmp_path)
    file, digest = handle.directory / "16.npy", handle.directory / "16.blake2b"
    good = file.read_bytes()
    if damage == "a flipped bit":
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "another cache's pixels":
        np.save(file, np.zeros((len(catalog.kept), 16, 16, 3), np.uint8))
    elif damage == "no digest":  # a process was killed between the two
        digest.unlink()
    else:
        digest.write_text("0" * 32)
    build(catalog, split(catalog), [16], cache_dir=tmp_path)
    assert file.read_bytes() == good
    before = file.stat().st_mtime_ns
    build(catalog, split(catalog), [16], cache_dir=tmp_path)
    assert file.stat().st_mtime_ns == before


def test_a_damaged_split_is_reported_and_rebuilt(catalog: Catalog, tmp_path: Path):
    handle = build(catalog, split(catalog), [16], cache_dir=tmp_path)
    file = handle.directory / f"split-{handle.split}.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"{file.name} .*run the same command again"):
        open_part(handle, 16, "train")
    build(catalog, split(catalog), [16], cache_dir=tmp_path)
    assert len(open_part(handle, 16, "train").indices)


def _build(catalog: Catalog, tmp_path: Path, start: "multiprocessing.synchronize.Barrier") -> None:
    start.wait(60)
    build(catalog, split(catalog), [16, 24, 32], cache_dir=tmp_path)


def test_processes_that_build_at_once_all_succeed(catalog: Catalog, tmp_path: Path):
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(2)
    processes = [spawn.Process(target=_build, args=(catalog, tmp_path, start)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    handle = build(catalog, split(catalog), [16, 24, 32], cache_dir=tmp_path)
    assert sorted(path.name for path in handle.directory.iterdir()) == sorted(
        [f"{size}.{kind}" for size in (16, 24, 32) for kind in ("npy", "blake2b")] + [f"split-{handle.split}.npz"]
    )


def test_a_changed_picture_is_named_and_nothing_is_left(catalog: Catalog, tmp_path: Path):
    victim = catalog.file(catalog.kept[7])
    victim.write_bytes(victim.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{victim.name} has changed .*\(its bytes differ\)"):
        build(catalog, split(catalog), [16], cache_dir=tmp_path)
    victim.unlink()
    with pytest.raises(DataError, match=rf"{victim.name} .*\(No such file or directory\)"):
        build(catalog, split(catalog), [16], cache_dir=tmp_path)
    assert [path.suffix for path in (tmp_path / "pictures" / catalog.fingerprint).iterdir()] == [".npz"]


def test_too_little_room_is_an_error_before_anything_is_decoded(catalog: Catalog, tmp_path: Path):
    size = 50_000_000  # 36 pictures of 7.5 petabytes
    needed = f"{len(catalog.kept) * size * size * 3:,}"
    with pytest.raises(DataError, match=rf"{needed} bytes needed, [\d,]+ free.*--cache"):
        build(catalog, split(catalog), [size], cache_dir=tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is a Linux thing")
def test_a_disk_that_fills_up_is_an_error_and_not_a_signal(catalog: Catalog, tmp_path: Path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
        with pytest.raises(DataError, match=r"cannot write .*\(File too large\): .*--cache"):
            build(catalog, split(catalog), [64], cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_folder_that_cannot_be_made_is_named(catalog: Catalog, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write .*file/pictures.*--cache"):
        build(catalog, split(catalog), [16], cache_dir=tmp_path / "file")


def test_unfinished_files_of_killed_processes_are_removed_after_an_hour(catalog: Catalog, tmp_path: Path):
    handle = build(catalog, split(catalog), [16], cache_dir=tmp_path)
    with replacing(handle.directory / "24.npy") as left_behind:
        left_behind.write_bytes(b"half")
    young, older = handle.directory / ".24.npy.young.part", handle.directory / "24.npy-old.part"
    for path in (left_behind, young, older):  # as a killed process leaves them
        path.write_bytes(b"half")
    for path in (left_behind, older):
        os.utime(path, (0, 0))
    build(catalog, split(catalog), [24], cache_dir=tmp_path)
    assert (left_behind.exists(), older.exists(), young.exists()) == (False, False, True)


@pytest.mark.parametrize("there", [True, False])
def test_a_mapped_file_that_windows_does_not_replace_is_kept(
    there: bool, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    handle = build(catalog, split(catalog), [16], cache_dir=tmp_path)
    file, digest = handle.directory / "16.npy", handle.directory / "16.blake2b"
    digest.unlink()
    if not there:
        file.unlink()
    replace_file = Path.replace

    def refusing(path: Path, target: Path) -> Path:
        if target == file:
            raise PermissionError(13, "Access is denied")
        return replace_file(path, target)

    monkeypatch.setattr(Path, "replace", refusing)
    if there:
        build(catalog, split(catalog), [16], cache_dir=tmp_path)
        assert digest.exists()
    else:
        with pytest.raises(DataError, match="Access is denied"):
            build(catalog, split(catalog), [16], cache_dir=tmp_path)
    assert not list(handle.directory.glob("*.part"))


def test_progress_counts_pictures(catalog: Catalog, tmp_path: Path):
    seen: list[tuple[str, int, int]] = []

    def track(iterable, description, total):
        seen.append((description, total, 0))
        for count, item in enumerate(iterable, 1):
            seen.append((description, total, count))
            yield item

    build(catalog, split(catalog), [16, 24], cache_dir=tmp_path, track=track)
    assert seen[-1] == ("Preparing pictures", len(catalog.kept), len(catalog.kept))
    seen.clear()
    build(replace(catalog), split(catalog), [24, 16], cache_dir=tmp_path, track=track)
    assert seen == []
