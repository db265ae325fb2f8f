"""Small picture folders for every test: clean ones, and one with every flaw found in downloaded data sets.

Pictures are smooth random patterns tinted by class: different enough that no two are near-duplicates, and similar
enough within a class that a small network can learn it. The same arguments write the same bytes.
"""

import contextlib
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from data.catalog import Catalog, Picture, scan
from data.file_checks import Verdict
from data.sources import Source, resolve

NAMES = ("Agaricus", "Amanita", "Boletus", "Cortinarius", "Entoloma", "Hygrocybe", "Lactarius", "Russula", "Suillus")

FLAWED = {
    "Agaricus/again.jpg": "duplicate",  # the bytes of Agaricus/0000.jpg
    "Agaricus/truncated.jpg": "unreadable",
    "Agaricus/grey.jpg": "kept",
    "Agaricus/cmyk.jpg": "kept",
    "Agaricus/in-two-classes.jpg": "conflict",
    "Agaricus/notes.txt": "not_a_picture",
    "Agaricus/UPPER.JPG": "kept",
    "Agaricus/nested/deeper/inside.jpg": "kept",
    "Amanita/in-two-classes-too.jpg": "conflict",
    "Amanita/rgba.png": "kept",
    "Amanita/palette.png": "kept",
    "Amanita/palette-transparent.png": "kept",
    "Amanita/grey-alpha.png": "kept",
    "Amanita/one-bit.png": "kept",
    "Amanita/sixteen-bit.png": "kept",
    "Amanita/no-suffix": "kept",
    "Boletus/rotated.jpg": "kept",
    "Boletus/stereo.mpo": "kept",
    "Boletus/really-a-png.jpg": "kept",
    "Boletus/really-text.jpg": "unreadable",
    "Boletus/nothing.jpg": "unreadable",  # 0 bytes
    "Boletus/small.png": "too_small",
    "Boletus/bomb.png": "refused",
    "Boletus/folder.jpg": "refused",
    "Boletus/link-out.jpg": "refused",
    "Boletus/link-broken.jpg": "refused",
}
"""Files that `flawed_folder` adds to twelve good ones per class, and the verdict each must get."""


def picture(seed: int, *, label: int = 0, width: int = 32, height: int = 32) -> Image.Image:
    """Return an RGB picture of class number `label`; each seed gives another pattern."""
    rng = np.random.default_rng([seed, label])
    pattern = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    tint = np.array([[200, 60, 60], [60, 180, 60], [60, 80, 210], [200, 190, 40], [190, 60, 190]])[label % 5]
    return Image.fromarray((0.5 * np.asarray(pattern) + 0.5 * tint).astype(np.uint8))


def class_folders(folder: Path, classes: int = 3, each: int = 12, size: int = 32) -> Path:
    """Write `classes` folders of `each` JPEGs of size x size pixels under `folder`, and return `folder`."""
    for label, name in enumerate(NAMES[:classes]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for seed in range(each):
            picture(seed, label=label, width=size, height=size).save(folder / name / f"{seed:04d}.jpg", quality=92)
    return folder


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims width x height pixels, as a decompression bomb's does."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def deep_png(values: np.ndarray, *, transparent: Sequence[int] = ()) -> bytes:
    """Return a PNG of 16-bit values: (height, width) or (height, width, 2 to 4); Pillow can write only the former.

    `transparent` is the value or colour that stands for transparent.
    """
    height, width = values.shape[:2]
    kind = {1: 0, 3: 2, 2: 4, 4: 6}[values.size // (height * width)]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    chunks += [(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))] * bool(transparent)
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def tiff(
    values: np.ndarray, *, order: str = "<", compressed: bool = False, planes: bool = False, no_data: bytes = b""
) -> bytes:
    """Return a TIFF of (height, width) or (height, width, 3) values of any type, as scientific programs write them.

    `planes` stores one colour after the other, and `no_data` is GDAL's text for values that were not measured.
    """
    height, width = values.shape[:2]
    colours = values.size // (height * width)
    stored = values.astype(values.dtype.newbyteorder(order))
    strips = [plane.tobytes() for plane in (np.moveaxis(stored, -1, 0) if planes else [stored])]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    sample = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    shorts = {
        258: [8 * values.dtype.itemsize] * colours,
        259: [8 if compressed else 1],
        262: [2 if colours == 3 else 1],
    }
    shorts |= {277: [colours], 284: [2 if planes else 1], 339: [sample] * colours}
    entries = {tag: (3, struct.pack(f"{order}{len(numbers)}H", *numbers)) for tag, numbers in shorts.items()}
    longs = {256: [width], 257: [height], 278: [height], 279: [len(strip) for strip in strips], 273: [0] * len(strips)}
    entries |= {tag: (4, struct.pack(f"{order}{len(numbers)}I", *numbers)) for tag, numbers in longs.items()}
    entries |= {42113: (2, no_data)} if no_data else {}
    end = 8 + 2 + 12 * len(entries) + 4
    first = end + sum(len(body) for _, body in entries.values() if len(body) > 4)
    places = [first + sum(map(len, strips[:number])) for number in range(len(strips))]
    entries[273] = (4, struct.pack(f"{order}{len(places)}I", *places))
    table, behind = b"", b""
    for tag, (kind, body) in sorted(entries.items()):
        field = body.ljust(4, b"\0") if len(body) <= 4 else struct.pack(f"{order}I", end + len(behind))
        table += struct.pack(f"{order}HHI", tag, kind, len(body) // {2: 1, 3: 2, 4: 4}[kind]) + field
        behind += body if len(body) > 4 else b""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return start + struct.pack(f"{order}H", len(entries)) + table + b"\0" * 4 + behind + b"".join(strips)


def exif_block(
    entries: Sequence[tuple[int, int, int, int]],
    *,
    order: str = "<",
    start: int = 8,
    count: int | None = None,
    cut: int | None = None,
) -> bytes:
    """Return a block of 200 bytes of EXIF metadata from entries (tag, type, count, value), cut after `cut`.

    `start` is where the block says that its entries begin, and `count` is how many it says there are.
    """
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", start, count or len(entries))
    for tag, kind, number, value in entries:
        block += struct.pack(f"{order}HHI", tag, kind, number) + struct.pack(
            order + ("HH" if kind == 3 else "I"), *([value, 0][: 1 + (kind == 3)])
        )
    return block.ljust(200, b"\0")[:cut]


def flawed_folder(folder: Path) -> Path:
    """Write three classes of twelve good 48 px pictures, every flaw of `FLAWED`, an empty class and hidden files.

    Returns `folder`. Where links cannot be made (Windows without the privilege), the two links are missing.
    """
    class_folders(folder, classes=3, each=12, size=48)
    agaricus, amanita, boletus = (folder / name for name in NAMES[:3])

    def draw(seed: int, label: int, width: int = 48, height: int = 48) -> Image.Image:
        return picture(1000 + seed, label=label, width=width, height=height)

    (agaricus / "again.jpg").write_bytes((agaricus / "0000.jpg").read_bytes())
    draw(0, 0, 96, 96).save(agaricus / "truncated.jpg", quality=92)
    whole = (agaricus / "truncated.jpg").read_bytes()
    (agaricus / "truncated.jpg").write_bytes(whole[:-92])  # as the Kaggle set's Russula/092_43B354vYxm8.jpg
    draw(1, 0).convert("L").save(agaricus / "grey.jpg")
    draw(2, 0).convert("CMYK").save(agaricus / "cmyk.jpg")
    draw(3, 0).save(agaricus / "in-two-classes.jpg")
    (amanita / "in-two-classes-too.jpg").write_bytes((agaricus / "in-two-classes.jpg").read_bytes())
    (agaricus / "notes.txt").write_text("found under birches\n", encoding="utf-8")
    draw(4, 0).save(agaricus / "UPPER.JPG", format="JPEG")
    (agaricus / "nested" / "deeper").mkdir(parents=True, exist_ok=True)
    draw(5, 0).save(agaricus / "nested" / "deeper" / "inside.jpg")

    rgba = draw(6, 1).convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 48).astype(np.uint8), (48, 1))))
    rgba.save(amanita / "rgba.png")
    draw(7, 1).convert("P", palette=Image.Palette.ADAPTIVE).save(amanita / "palette.png")
    draw(8, 1).convert("P", palette=Image.Palette.ADAPTIVE).save(amanita / "palette-transparent.png", transparency=0)
    grey_alpha = draw(9, 1).convert("LA")
    grey_alpha.save(amanita / "grey-alpha.png")
    draw(10, 1).convert("1").save(amanita / "one-bit.png")
    deep = np.asarray(draw(11, 1).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(amanita / "sixteen-bit.png")
    draw(12, 1).save(amanita / "no-suffix", format="PNG")

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was held upright, the pixels are stored sideways
    draw(13, 2, 64, 48).save(boletus / "rotated.jpg", exif=exif)
    draw(14, 2).save(boletus / "stereo.mpo", format="MPO", save_all=True, append_images=[draw(15, 2)])
    draw(16, 2).save(boletus / "really-a-png.jpg", format="PNG")
    (boletus / "really-text.jpg").write_text("404 not found", encoding="utf-8")
    (boletus / "nothing.jpg").touch()
    draw(17, 2, 15, 40).save(boletus / "small.png")
    (boletus / "bomb.png").write_bytes(png_claiming(20_000, 20_000))
    (boletus / "folder.jpg").mkdir(exist_ok=True)
    outside = folder.parent / f"{folder.name}-outside.jpg"
    draw(18, 2).save(outside)
    with contextlib.suppress(OSError):
        (boletus / "link-out.jpg").symlink_to(outside)
        (boletus / "link-broken.jpg").symlink_to(boletus / "gone.jpg")

    (folder / "Empty").mkdir(exist_ok=True)
    (folder / "__MACOSX").mkdir(exist_ok=True)
    (folder / "__MACOSX" / "._0000.jpg").write_bytes(b"\0\5\26\7")
    (folder / ".hidden").mkdir(exist_ok=True)
    (agaricus / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return folder


def deep_folder(folder: Path) -> Path:
    """Write two classes, each of 12 pictures whose values fill 12 of 16 bits and one of 8 bits. Return `folder`."""
    for label, name in enumerate(NAMES[:2]):
        (folder / name).mkdir(parents=True)
        picture(100, label=label).save(folder / name / "eight.png")
        for seed in range(12):
            values = np.asarray(picture(seed, label=label).convert("L")).astype(np.uint16) * 16
            Image.fromarray(values).save(folder / name / f"{seed:04d}.tif")
    return folder


def altered(image: Image.Image) -> list[Image.Image]:
    """Return three near-duplicates of a picture: smaller, grey and darker."""
    return [
        image.resize((image.width * 2 // 3, image.height * 2 // 3)),
        image.convert("L"),
        ImageEnhance.Brightness(image).enhance(0.9),
    ]


def scanned(
    root: Path,
    cache_dir: Path,
    test_data: Path | None = None,
    *,
    parts: str | None = None,
    follow_links: bool = False,
) -> Catalog:
    """Return the catalog of a folder, with the results of its checks stored under `cache_dir`."""
    source = resolve(
        str(root), cache_dir=cache_dir, pictures=None, test_data=test_data, parts=parts, follow_links=follow_links
    )
    return scan(source, cache_dir=cache_dir)


def by_path(catalog: Catalog) -> dict[str, Picture]:
    """Return a catalog's files by path."""
    return {file.path: file for file in catalog.pictures}


def made_up_picture(content_hash: str, label: str, group: str) -> Picture:
    """Return a kept picture without a file."""
    return Picture(
        path=f"{label}/{content_hash}.jpg",
        part="all",
        label=label,
        verdict=Verdict.KEPT,
        reason="",
        size_bytes=1,
        width=32,
        height=32,
        mode="RGB",
        content_hash=content_hash,
        group=group,
    )


def made_up_catalog(pictures: list[Picture]) -> Catalog:
    """Return a catalog of pictures without files."""
    root = Path("made-up")
    source = Source(name="made-up", root=root, parts={"all": root}, classes={}, available=None, citation="")
    return Catalog(source=source, classes=tuple(sorted({p.label for p in pictures})), pictures=tuple(pictures))


def large_catalog(count: int) -> Catalog:
    """Return a catalog of `count` pictures without files, shared evenly among three classes; none are alike."""
    rng = np.random.default_rng(0)
    hashes = [rng.bytes(16).hex() for _ in range(count)]
    return made_up_catalog([made_up_picture(one, NAMES[number % 3], one) for number, one in enumerate(hashes)])
