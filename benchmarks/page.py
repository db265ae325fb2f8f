"""classify.html in Chromium: how fast it is, and how far its answers are from those of `predict`.

    npm install --prefix /tmp/ort onnxruntime-web
    python benchmarks/page.py --onnxruntime-web /tmp/ort/node_modules/onnxruntime-web
    python benchmarks/page.py --bundle results/field-guide/best --pictures ~/photographs ~/digits

Speed is that of the page's WebAssembly kernel, of the plain JavaScript that replaces it where WebAssembly is forbidden,
and of onnxruntime-web, one thread each; they take turns within one run. The pictures are given to the page through its
own input, as they are; those large enough also as PNG, as WebP, and as JPEGs that Pillow's decoder makes smaller.
Last, the memory that large photographs take, by the proportional set sizes that Linux counts.
"""

import contextlib
import functools
import itertools
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.measuring import spread
from model.export.bundle import Bundle, load, save
from model.export.formats import PAGE, write_graphs
from model.network import ModelConfig, MushroomCNN, cost
from model.page.write import HERE, page
from tests.stress.chromium import chromium
from tests.stress.classify import differences, give, table
from tests.stress.script import header, machine, row, run

NETWORKS = ((32, 0.25), (64, 0.25), (64, 0.5), (128, 0.5))
"""Image size and width of the networks that are timed."""
TURNS = 25
MILLISECONDS = 50
"""Least duration of a turn; browsers' clocks are coarse."""
PER_FOLDER = 60
"""Number of pictures that are taken from a folder."""
QUALITIES = (60, 75, 85, 92, 96)
"""JPEG qualities, which the pictures made for a comparison take in turn."""
AIM = 0.02
"""Largest difference of a probability that JPEGs should have."""
LARGE = ((4000, 3000), (8000, 6000))
"""Sizes of the photographs whose memory is measured: 12 and 48 megapixels."""
REPEATS = 3

SPEED = """
const [names, turns, least, done] = arguments;
const load = src => new Promise((onload, onerror) => {
  document.head.append(Object.assign(document.createElement("script"), { src, onload, onerror }));
});
const bytesOf = base64 => Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
(async () => {
  await load("network.js");
  await load("runtime/ort.wasm.min.js");
  ort.env.wasm.numThreads = 1;
  const found = [];
  for (const name of names) {
    const text = await (await fetch(`${name}/classify.html`)).text();
    const model = JSON.parse(new DOMParser().parseFromString(text, "text/html").getElementById("model").textContent);
    const numbers = new Float32Array(bytesOf(model.numbers).buffer), size = model.image_size;
    const session = await ort.InferenceSession.create(`${name}/model.onnx`);
    const square = Uint8Array.from({ length: size * size * 3 }, (_, n) => n * 7919 % 256);
    const input = () => ({ pictures: new ort.Tensor("uint8", square, [1, size, size, 3]) });
    const [kernel, plain] = [bytesOf(model.kernel), new Uint8Array()].map(wasm => makeNetwork(model, numbers, wasm));
    const runs = [kernel, plain, async () => ({ probabilities: Object.values(await session.run(input()))[0].data })];
    const answers = [], times = [[], [], []], counts = [];
    for (const run of runs) {
      answers.push(Array.from((await run(square)).probabilities));
      const start = performance.now();
      let count = 0;
      for (; performance.now() < start + least; count++) await run(square);
      counts.push(count);
    }
    for (let turn = 0; turn < turns; turn++)
      for (const [place, run] of runs.entries()) {
        const start = performance.now();
        for (let n = 0; n < counts[place]; n++) await run(square);
        times[place].push((performance.now() - start) / counts[place]);
      }
    found.push({ answers, times });
  }
  return { found, runtime: ort.env.versions.web };
})().then(done, error => done({ error: String(error) }));
"""
"""Program that times the three runtimes on each of the networks, in a page on this machine."""


def write_random_bundle(folder: Path, image_size: int, width: float) -> Bundle:
    """Write random weights as a bundle with its page; a network's speed does not depend on what it has learned."""
    torch.manual_seed(0)
    model = ModelConfig(classes=9, width=width)
    names = tuple(f"class {label}" for label in range(model.classes))
    bundle = Bundle(model=model, classes=names, image_size=image_size, temperature=1.0, provenance={}, results=None)
    network = MushroomCNN(model).eval()
    folder.mkdir(exist_ok=True)
    save(folder, bundle, network.state_dict())
    (folder / PAGE).write_text(page(bundle, network), encoding="utf-8")
    return bundle


def compare_speed(runtime: Path, folder: Path) -> None:
    """Print the milliseconds per picture of the three runtimes; `folder` is empty."""
    shutil.copy(HERE / "network.js", folder)
    (folder / "runtime").symlink_to((runtime / "dist").resolve())
    (folder / "index.html").write_text('<!doctype html><link rel="icon" href="data:,"><title>Speed</title>')
    names: list[str] = []
    weights: list[tuple[int, str]] = []
    for size, width in NETWORKS:
        name = f"{size}-{width}"
        bundle = write_random_bundle(folder / name, size, width)
        write_graphs(folder / name)
        names.append(name)
        weight = cost(bundle.model, size)
        weights.append((size, f"{weight.flops / 1e6:,.0f} | {weight.parameters:,}"))
    with serve(folder) as address, chromium() as browser:
        browser.set_script_timeout(580)
        browser.get(address)
        said = browser.execute_async_script(SPEED, names, TURNS, MILLISECONDS)
        assert "error" not in said, said
        print(f"Chromium {browser.capabilities['browserVersion']}, onnxruntime-web {said['runtime']}")
    print(f"ms per picture; median and quartiles of {TURNS} interleaved turns of {MILLISECONDS} ms or more\n")
    ratios = ("JavaScript / kernel", "web / kernel")
    header("px", "MFLOP", "parameters", "kernel", "JavaScript", "onnxruntime-web", *ratios)
    for (size, weight), one in zip(weights, said["found"], strict=True):
        np.testing.assert_allclose(one["answers"], np.broadcast_to(one["answers"][0], (3, 9)), atol=1e-5)
        kernel, plain, web = one["times"]
        slower = [spread([a / b for a, b in zip(other, kernel, strict=True)], 1) for other in (plain, web)]
        row(size, weight, *map(spread, (kernel, plain, web)), *slower)


@contextlib.contextmanager
def serve(folder: Path) -> Generator[str]:
    """Serve a folder on this machine and return its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


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


def compare_memory(bundle: Path, folder: Path) -> None:
    """Print how much memory Chromium takes for a large picture, beyond that of the page before, and for how long."""
    (folder / PAGE).write_text(page(*load(bundle)), encoding="utf-8")
    header("photograph", "megapixels", "memory before, MB", "largest rise, MB", "after, MB", "s")
    rng = np.random.default_rng(0)
    for width, height in LARGE:
        coarse = rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        for kind in ("jpg", "png"):
            path = folder / f"{width}.{kind}"
            picture.save(path)
            before, rise, after, seconds = zip(*(memory_of(folder / PAGE, path) for _ in range(REPEATS)), strict=True)
            cells = (f"{statistics.median(n):.0f} ({min(n):.0f} to {max(n):.0f})" for n in (before, rise, after))
            row(kind, f"{width * height / 1e6:.0f}", *cells, spread(list(seconds), 1))


def memory_of(address: Path, picture: Path) -> tuple[float, float, float, float]:
    """Return what all of Chromium's processes take before, their largest rise, what is left, in MB, and the seconds."""
    with chromium() as browser:
        browser.get(address.as_uri())
        driver = psutil.Process(browser.service.process.pid)
        time.sleep(1)
        before = most = resident(driver)
        done = threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.02):
                most = max(most, resident(driver))

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = time.monotonic()
        said = give(browser, [picture], seconds=120)
        seconds = time.monotonic() - begin
        done.set()
        watcher.join()
        assert "1 picture" in said, said
        return before, most - before, resident(driver) - before, seconds


def resident(process: psutil.Process) -> float:
    """Return the proportional set size of a process's descendants in MB."""
    total = 0
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += child.memory_full_info().pss
    return total / 1e6


def main(*, onnxruntime_web: Path | None = None, bundle: Path | None = None, pictures: tuple[Path, ...] = ()) -> None:
    """Print the tables.

    Parameters
    ----------
    onnxruntime_web
        Folder of the npm package onnxruntime-web: compare its speed with the page's.
    bundle
        Folder of a bundle: compare its page with `predict`, and measure its memory.
    pictures
        Folders with pictures for that comparison.
    """
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        speed, answers = Path(scratch) / "speed", Path(scratch) / "answers"
        if onnxruntime_web:
            speed.mkdir()
            compare_speed(onnxruntime_web, speed)
        if bundle:
            (answers / "downloads").mkdir(parents=True)
            if pictures:
                compare_answers(bundle, pictures, answers)
            compare_memory(bundle, answers)


if __name__ == "__main__":
    run(main)
