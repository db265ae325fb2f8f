"""How far the answers of classify.html, in Chromium, are from those of `predict`.

    python benchmarks/page.py results/field-guide/best ~/photographs ~/digits

The page is given the pictures through its own input, as they are; those large enough also as PNG, as WebP, and as JPEGs
that Pillow's decoder makes smaller.
"""

import itertools
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from model.export.bundle import load
from model.export.formats import PAGE
from model.page.write import page
from tests.stress.chromium import chromium
from tests.stress.classify import differences, give, table
from tests.stress.script import header, machine, row, run

PER_FOLDER = 60
"""Number of pictures that are taken from a folder."""
QUALITIES = (60, 75, 85, 92, 96)
"""JPEG qualities, which the pictures made for a comparison take in turn."""
AIM = 0.02
"""Largest difference of a probability that JPEGs should have."""


def variants(source: Path, folder: Path, side: int, qualities: Iterator[int]) -> Iterator[tuple[str, Path]]:
    """Write a photograph in other kinds and sizes; yield each kind and its file. `side` is the network's image size."""
    with Image.open(source) as image:
        picture = image.convert("RGB")
    stem = f"{source.stem} as"
    for kind in ("PNG", "WebP"):
        path = folder / f"{stem}.{kind.lower()}"
        picture.save(path, lossless=True)
        yield f"{kind}, lossless", path
    least = min(picture.size)
    sizes = {f"1/{by}": 2.7 * by * side / least for by in (2, 4, 8)}
    sizes["1/8, 12 megapixels"] = (12e6 / picture.width / picture.height) ** 0.5
    for (name, scale), (sampling, chroma) in itertools.product(sizes.items(), enumerate(("4:4:4", "4:2:2", "4:2:0"))):
        width, height = (round(length * scale) for length in picture.size)
        path = folder / f"{stem} {width} {sampling}.jpg"
        small = picture.resize((width, height), Image.Resampling.BICUBIC)
        small.save(path, subsampling=sampling, quality=next(qualities))
        yield f"JPEG, {chroma}, made smaller to {name}", path


def compare_answers(bundle: Path, pictures: tuple[Path, ...], folder: Path) -> None:
    """Print how far the page's probabilities are from those of `predict`, for each kind of picture."""
    side = load(bundle)[0].image_size
    qualities = itertools.cycle(QUALITIES)
    with chromium(folder / "downloads") as browser:
        browser.downloads = folder / "downloads"

        def compare(files: list[tuple[str, Path]], kinds: dict[str, list[float]]) -> None:
            browser.get((folder / PAGE).as_uri())
            paths = [path for _, path in files]
            give(browser, paths, seconds=300)
            found = differences(bundle, paths, table(browser))
            for kind, path in files:
                kinds.setdefault(kind, []).append(found[path.name])

        (folder / PAGE).write_text(page(*load(bundle)), encoding="utf-8")
        header("pictures", "n", "largest difference", "mean", f"n above {AIM}")
        for source in pictures:
            kinds: dict[str, list[float]] = {}
            paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
            chosen = [
                Path(shutil.copy(path, folder / f"{number} {path.name}"))  # names are repeated in other classes
                for number, path in enumerate(random.Random(0).sample(paths, min(PER_FOLDER, len(paths))))
            ]
            compare([(f"{source.name}, as they are", path) for path in chosen], kinds)
            for path in chosen:
                with Image.open(path) as image:
                    is_large = min(image.size) >= 2 * side
                if is_large:
                    made = list(variants(path, folder, side, qualities))
                    compare(made, kinds)
                    for _, file in made:
                        file.unlink()
            for kind, values in kinds.items():
                above = sum(value > AIM for value in values)
                row(kind, len(values), f"{max(values):.2g}", f"{statistics.fmean(values):.2g}", above)


def main(bundle: Path, *pictures: Path) -> None:
    """Print the table.

    Parameters
    ----------
    bundle
        Folder of a bundle.
    pictures
        Folders with pictures, of each of which up to 60 are taken.
    """
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "downloads").mkdir()
        compare_answers(bundle, pictures, Path(scratch))


if __name__ == "__main__":
    run(main)
