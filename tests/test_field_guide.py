"""The built-in data set: pictures depend only on (genus, index, size, seed); sets are complete and proportional."""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data import DataError, field_guide
from data.field_guide import APPEARANCES, GENERA, LEAST, counts, draw, write

LEAST_IN_ALL = LEAST * len(GENERA)


def test_the_full_set_has_the_class_sizes_of_the_kaggle_set() -> None:
    assert sum(GENERA.values()) == 6714
    assert counts(6714) == GENERA


def test_counts_sum_to_the_total_and_follow_the_proportions() -> None:
    for total in (LEAST_IN_ALL, 500, 1500, 6713, 20_000):
        shared = counts(total)
        assert sum(shared.values()) == total
        assert min(shared.values()) >= LEAST
    for genus, number in counts(1500).items():
        assert abs(number - 1500 * GENERA[genus] / 6714) <= 1


def test_a_larger_total_takes_no_picture_from_a_genus() -> None:
    before = counts(LEAST_IN_ALL)
    for total in range(LEAST_IN_ALL + 1, 3000):
        after = counts(total)
        assert all(after[genus] >= before[genus] for genus in GENERA)
        before = after


def test_too_small_a_total_is_refused() -> None:
    with pytest.raises(DataError, match=r"^100 pictures .*14 .* 9 genera, 126 .*--pictures"):
        counts(100)


def test_a_picture_is_the_same_byte_for_byte_in_another_process_and_order() -> None:
    script = (
        "import hashlib\nfrom data.field_guide import draw\n"
        "for index in (5, 0):\n    print(hashlib.sha256(draw('Suillus', index).tobytes()).hexdigest())"
    )
    root = Path(__file__).parents[1]
    other = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    draw("Russula", 3)
    here = [hashlib.sha256(draw("Suillus", index).tobytes()).hexdigest() for index in (0, 5)]
    assert other.stdout.split() == here[::-1]


@pytest.mark.parametrize("genus", GENERA)
def test_every_genus_can_be_drawn(genus: str) -> None:
    for index in range(3):
        picture = draw(genus, index, size=64)
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
        assert np.asarray(picture).std() > 10


def test_genus_index_and_seed_each_make_another_picture() -> None:
    first = draw("Amanita", 0, size=64).tobytes()
    others = [draw("Boletus", 0, size=64), draw("Amanita", 1, size=64), draw("Amanita", 0, size=64, seed=1)]
    assert len({first, *(other.tobytes() for other in others)}) == 4


@pytest.mark.parametrize(("size", "least"), [(64, 0.999), (128, 0.999), (384, 0.97)])
def test_every_size_shows_the_same_scene(size: int, least: float) -> None:
    for genus in ("Lactarius", "Cortinarius"):
        usual = np.asarray(draw(genus, 4).resize((32, 32), Image.Resampling.BOX), np.float64)
        other = np.asarray(draw(genus, 4, size=size).resize((32, 32), Image.Resampling.BOX), np.float64)
        assert np.corrcoef(usual.ravel(), other.ravel())[0, 1] > least


def test_pores_and_gills_rings_and_volvas_are_where_they_belong() -> None:
    assert {genus for genus, appearance in APPEARANCES.items() if appearance.pores} == {"Boletus", "Suillus"}
    assert {genus for genus, appearance in APPEARANCES.items() if appearance.ring} == {"Agaricus", "Amanita", "Suillus"}
    assert {genus for genus, appearance in APPEARANCES.items() if appearance.volva} == {"Amanita"}
    assert len({appearance.skin for appearance in APPEARANCES.values()}) == len(GENERA)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"genus": "Psilocybe", "index": 0}, "Agaricus, .*'Psilocybe'"),
        ({"genus": "Russula", "index": -1}, "index=-1, seed=0"),
        ({"genus": "Russula", "index": 0, "seed": -2}, "index=0, seed=-2"),
        ({"genus": "Russula", "index": 0, "size": 8}, "16 <= size <= 2048 .* size=8"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        draw(**arguments)  # type: ignore[arg-type]


def test_write_draws_a_set_skips_what_is_there_and_extends_it(tmp_path: Path) -> None:
    tracked: list[int] = []

    def track(iterable: Iterable[object], description: str, total: int) -> Iterable[object]:
        tracked.append(total)
        return iterable

    assert write(tmp_path, LEAST_IN_ALL, size=32, track=track) == tmp_path
    files = sorted(tmp_path.rglob("*"))
    pictures = [path for path in files if path.is_file()]
    assert len(pictures) == LEAST_IN_ALL
    assert pictures[0] == tmp_path / "Agaricus" / "Agaricus_0001.jpg"
    assert {path.suffix for path in pictures} == {".jpg"}  # no temporary file is left

    first = pictures[0].read_bytes()
    pictures[0].unlink()
    pictures[1].write_bytes(b"the user's own")
    before = {path: path.read_bytes() for path in pictures[1:]}
    write(tmp_path, LEAST_IN_ALL + 3, size=32, track=track)
    assert tracked == [LEAST_IN_ALL, 4]
    assert pictures[0].read_bytes() == first  # drawn in this process now, and by one of several before
    assert {path: path.read_bytes() for path in pictures[1:]} == before
    assert len(list(tmp_path.rglob("*.jpg"))) == LEAST_IN_ALL + 3


def test_a_written_picture_is_the_drawn_one(tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    field_guide.draw_file((path, "Entoloma", 7, 64, 0))
    drawn = np.asarray(draw("Entoloma", 7, size=64), np.float64)
    assert np.abs(np.asarray(Image.open(path), np.float64) - drawn).mean() < 5


def test_a_picture_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "Russula_0001.jpg"
    path.mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OSError):
        field_guide.draw_file((path, "Russula", 0, 16, 0))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(DataError, match=rf"{re.escape(str(blocked))} \(.+\): .*--cache") as error:
        write(blocked, 200)
    assert "\n" not in str(error.value)


def test_the_module_is_light_for_the_processes_that_draw() -> None:
    script = "import sys, data.field_guide; print([m for m in ('torch', 'torchvision', 'optuna') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    other = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "[]"


@pytest.mark.parametrize("killed", ["the command", "a drawing process"])
def test_a_kill_while_drawing_leaves_no_process_and_is_explained(tmp_path: Path, killed: str) -> None:
    """Without care, drawing processes wait for more work for ever, and the death of one ends in a traceback."""
    program = (
        f"from data.field_guide import write; from pathlib import Path; write(Path({str(tmp_path / 'drawn')!r}), 900)"
    )
    script = tmp_path / "draw.py"
    script.write_text(f"if __name__ == '__main__':\n    {program}\n")
    root = str(Path(__file__).resolve().parents[1])
    with subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root}, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(tmp_path.glob("drawn/*/*.jpg")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            family = psutil.Process(process.pid).children()
            drawers = [child for child in family if any("spawn_main" in word for word in child.cmdline())]
            if not drawers:
                pytest.skip("one core draws by itself")
            (process if killed == "the command" else drawers[0]).kill()
            _, left = psutil.wait_procs(family, timeout=60)
            assert left == []
        finally:
            process.kill()
        assert process.stderr is not None
        if killed != "the command":
            assert "a drawing process was killed" in process.stderr.read()
