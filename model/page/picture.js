// --- A picture file -> the square that the network sees: what model/preprocessing.py does, with the same pixels.
//
// The browser decodes, but neither turns the picture nor converts its colours. A JPEG that Pillow's decoder makes
// smaller on the way is made smaller here in the same way, as far as the browser's pixels tell what the file holds.

const MAX_BYTES = 2 ** 30, MAX_PIXELS = 1e8, MIN_SIDE = 16, SHOWN_SIDE = 384;
const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
const BROKEN = "broken, or truncated";
const DECODED = ["JPEG", "PNG", "GIF", "WebP", "BMP", "AVIF", "HEIC"];
const SIGNATURES = [
  ["JPEG", /^\xff\xd8\xff/], ["PNG", /^\x89PNG\r\n\x1a\n/], ["GIF", /^GIF8[79]a/],
  ["WebP", /^RIFF....WEBP/s], ["BMP", /^BM/],
  ["AVIF", /^....ftyp.*avi[fs]/s], ["HEIC", /^....ftyp.*(hei|hev|mif1|msf1)/s], ["TIFF", /^(II[*+]\0|MM\0[*+])/],
  ["JPEG 2000", /^(\0\0\0\x0cjP {2}|\xff\x4f\xff\x51)/], ["PPM", /^P[1-6]\s/],
];

// Return the square, RGB bytes, and a small upright picture to show. Throw an error whose message is the reason.
async function readPicture(file, size, ranges) {
  if (file.size > MAX_BYTES) throw new Error(`${(file.size / 1e9).toFixed(1)} GB, more than the 1.1 allowed`);
  const bytes = new Uint8Array(await file.arrayBuffer().catch(() => { throw new Error("cannot be opened"); }));
  const head = textOf(bytes, 0, 64), kind = SIGNATURES.find(([, signature]) => signature.test(head))?.[0];
  if (!kind) throw new Error("not a picture");
  if (!DECODED.includes(kind)) throw new Error(`browsers cannot open ${kind}: save it as JPEG or PNG`);
  const facts = kind === "JPEG" ? readJpeg(bytes)
    : kind === "PNG" ? await readPng(bytes) : kind === "WebP" ? readWebp(bytes) : {};
  checkPixels(facts.width, facts.height);
  // Firefox tells the kind of a file by a blob's first part, and that of a JPEG is too short for it
  const whole = facts.parts ? await new Blob(facts.parts).arrayBuffer() : bytes;
  const pixels = facts.depth === 16 ? await decodeDeepPng(facts, ranges) : new Blob([whole]);
  const bitmap = await createImageBitmap(pixels, AS_STORED).catch(() => {
    throw new Error(kind === "HEIC" ? "this browser cannot open HEIC: save it as JPEG" : BROKEN);
  });
  try {
    checkPixels(bitmap.width, bitmap.height);
    const turn = makeTurn(facts.orientation), scale = Math.min(1, SHOWN_SIDE / Math.max(bitmap.width, bitmap.height));
    const [resizeWidth, resizeHeight] = [bitmap.width, bitmap.height]
      .map(length => Math.max(1, Math.round(length * scale)));
    const small = await createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "high" });
    return { square: await toSquare(bitmap, turn, facts.stored, size), small, turn };
  } finally {
    bitmap.close();
  }
}

function checkPixels(width, height) {
  const pixels = width * height;
  if (pixels > MAX_PIXELS) throw new Error(`${Math.round(pixels / 1e6)} megapixels, more than the 100 allowed`);
  if (Math.min(width, height) < MIN_SIDE)
    throw new Error(`${width} x ${height} pixels, the shorter side must be at least ${MIN_SIDE}`);
}

function textOf(bytes, from, to) {
  return String.fromCharCode(...bytes.subarray(from, to));
}

// --- Metadata. Browsers turn some kinds of files and not others, so the orientation is taken out and applied here.

const isOrientation = value => value >= 1 && value <= 8;

// Return the orientation in a block of EXIF metadata, 0 without one; read entry by entry, as some blocks are damaged
function readExif(block) {
  try {
    const view = new DataView(block.buffer, block.byteOffset, block.byteLength), little = view.getUint16(0) === 0x4949;
    let entry = view.getUint32(4, little);
    for (let left = view.getUint16(entry, little), at = entry + 2; left > 0; left--, at += 12)
      if (view.getUint16(at, little) === 0x0112 && view.getUint32(at + 4, little) === 1) {
        const value = view.getUint16(at + 2, little) === 4 ? view.getUint32(at + 8, little)
          : view.getUint16(at + 8, little);
        return isOrientation(value) ? value : 0;
      }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 0;
}

function readXmp(text) {
  return Number(/tiff:Orientation(?:="|>)([0-9])/.exec(text)?.[1] ?? 0);
}

function readJpeg(bytes) {
  const facts = { parts: [bytes.subarray(0, 2)] }, tables = [];
  let exif = 0, xmp = 0, transform = 1, planes = [], at = 2;
  while (at + 4 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1], length = marker === 0xff ? -1 : 256 * bytes[at + 2] + bytes[at + 3];
    if (marker === 0xda) break;
    const segment = bytes.subarray(at, at + 2 + length), name = textOf(segment, 4, 33);
    const isExif = marker === 0xe1 && name.startsWith("Exif\0");
    if (isExif) exif ||= readExif(segment.subarray(10));
    else facts.parts.push(segment);
    if (marker === 0xe1 && name.startsWith("http://ns.adobe.com/xap/1.0/\0"))
      xmp ||= readXmp(new TextDecoder().decode(segment));
    if (marker === 0xdb)
      for (let n = 4; n < segment.length;) {
        const wide = segment[n] >> 4, value = m => wide ? 256 * segment[m] + segment[m + 1] : segment[m], first = n + 1;
        tables[segment[n] & 15] = Float32Array.from(ZIGZAG, place => value(first + (place << wide)));
        n = first + (64 << wide);
      }
    if (marker === 0xee && name.startsWith("Adobe")) transform = segment[15];
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      [facts.height, facts.width] = [5, 7].map(place => 256 * segment[place] + segment[place + 1]);
      planes = Array.from({ length: segment[9] }, (_, n) => segment.subarray(10 + 3 * n, 13 + 3 * n));
    }
    at += 2 + length;
  }
  facts.parts.push(bytes.subarray(at));
  return { ...facts, orientation: exif || xmp, stored: readStorage(planes, tables, transform) };
}

// Place of each of a block's 64 coefficients, line by line, in a file's table, which follows the diagonals
const ZIGZAG = Array.from({ length: 64 }, (_, n) => n)
  .map(n => ({ n, sum: (n >> 3) + (n & 7), way: (n >> 3) + n & 1 ? n >> 3 : n & 7 }))
  .sort((a, b) => a.sum - b.sum || a.way - b.way)
  .reduce((places, { n }, place) => Object.assign(places, { [n]: place }), []);

// Return how a JPEG stores its colours: as red, green and blue, or as brightness and two differences; and of each its
// quantisation table and how many pixels a sample covers across and down. Nothing is said of what is stored otherwise.
// Of CMYK, which Pillow's decoder does not make smaller here, return undefined.
function readStorage(planes, tables, transform) {
  if (planes.length === 4) return undefined;
  const known = planes.length === 1 || planes.length === 3, ids = String.fromCharCode(...planes.map(([id]) => id));
  const [widest, highest] = known ? [planes[0][1] >> 4, planes[0][1] & 15] : [];
  const stored = planes.map(([, sampling, table]) =>
    ({ table: tables[table], covers: [widest / (sampling >> 4), highest / (sampling & 15)] }));
  return {
    isRgb: !known || !transform || ids === "RGB",
    planes: stored.map(one =>
      known && one.table && ["1,1", "2,1", "2,2"].includes(String(one.covers)) ? one : undefined),
  };
}

async function readPng(bytes) {
  const view = new DataView(bytes.buffer), facts = { parts: [bytes.subarray(0, 8)], data: [] };
  let exif = 0, xmp = 0, profile = null, at = 8;
  while (at + 12 <= bytes.length) {
    const end = at + 12 + view.getUint32(at), name = textOf(bytes, at + 4, at + 8),
      body = bytes.subarray(at + 8, end - 4);
    if (name === "IHDR") [facts.width, facts.height, facts.depth, facts.colour, facts.interlaced] =
      [view.getUint32(at + 8), view.getUint32(at + 12), body[8], body[9], body[12]];
    if (name === "IDAT") facts.data.push(body);
    if (name === "tRNS")
      facts.transparent = Array.from({ length: body.length >> 1 }, (_, n) => 256 * body[2 * n] + body[2 * n + 1]);
    if (name === "eXIf") exif ||= readExif(body);
    else facts.parts.push(bytes.subarray(at, end));
    if (["tEXt", "zTXt"].includes(name) && textOf(body, 0, 22) === "Raw profile type exif\0")
      profile = name === "tEXt" ? body.subarray(22) : await inflate([body.subarray(23)], 2 ** 18);
    if (name === "iTXt" && textOf(body, 0, 17) === "XML:com.adobe.xmp") xmp ||= readXmp(new TextDecoder().decode(body));
    at = end;
    if (name === "IEND") break;
  }
  if (profile && !exif) {  // as ImageMagick writes it: three lines, then the block in hexadecimal digits
    const digits = new TextDecoder("latin1").decode(profile).split("\n").slice(3).join("").match(/[0-9a-f]{2}/gi) ?? [];
    exif = readExif(Uint8Array.from(digits, pair => parseInt(pair, 16)).subarray(6));
  }
  return { ...facts, orientation: exif || xmp };
}

function readWebp(bytes) {
  const view = new DataView(bytes.buffer), copy = bytes.slice();
  let exif = 0, xmp = 0;
  for (let at = 12; at + 8 <= bytes.length;) {
    const name = textOf(bytes, at, at + 4), end = at + 8 + view.getUint32(at + 4, true),
      body = bytes.subarray(at + 8, end);
    if (name === "EXIF") {
      exif ||= readExif(textOf(body, 0, 4) === "Exif" ? body.subarray(6) : body);
      copy.set([0x6a, 0x75, 0x6e, 0x6b], at);  // "junk", which a decoder skips
    }
    if (name === "XMP ") xmp ||= readXmp(new TextDecoder().decode(body));
    at = end + end % 2;
  }
  return { parts: [copy], orientation: exif || xmp };
}

// Return how an orientation maps upright columns and rows (x, y) to stored ones (u, v)
function makeTurn(orientation) {
  const [flipU, flipV] = [[2, 3, 7, 8], [3, 4, 6, 7]].map(flipped => flipped.includes(orientation));
  return { swap: orientation >= 5, flipU, flipV };
}

// --- More than 8 bits. A browser keeps the upper 8 of a PNG's 16; here they are scaled by the range of the data set.

async function decodeDeepPng({ width, height, colour, interlaced, data, transparent }, ranges) {
  const channels = { 0: 1, 2: 3, 4: 2, 6: 4 }[colour], colours = channels < 3 ? 1 : 3, pixel = 2 * channels;
  const [low, high] = ranges.integers ?? [0, 65535], scale = 256 / (high - low + 1);
  const to8 = Uint8ClampedArray.from({ length: 65536 }, (_, value) => Math.floor((value - low) * scale));
  const passes = (interlaced ? ADAM7 : [[0, 0, 1, 1]]).map(([left, top, across, down]) =>
    ({ left, top, across, down, columns: Math.ceil((width - left) / across), rows: Math.ceil((height - top) / down) }),
  ).filter(({ columns, rows }) => columns > 0 && rows > 0);
  const length = passes.reduce((sum, { columns, rows }) => sum + rows * (1 + pixel * columns), 0);
  const bytes = await inflate(data, length);
  if (bytes.length < length) throw new Error(BROKEN);
  const image = new ImageData(width, height);
  let at = 0;
  for (const { left, top, across, down, columns, rows } of passes) {
    let above = new Uint8Array(pixel * columns);
    for (let row = 0; row < rows; row++) {
      const filter = bytes[at], line = bytes.subarray(at + 1, at += 1 + pixel * columns);
      unfilter(filter, line, above, pixel);
      above = line;
      for (let from = 0, target = 4 * ((top + row * down) * width + left); from < line.length;
        from += pixel, target += 4 * across) {
        const value = n => line[from + 2 * n] << 8 | line[from + 2 * n + 1];
        const clear = transparent?.every((stored, n) => stored === value(n));
        const alpha = clear ? 0 : channels > colours ? line[from + 2 * colours] : 255;
        for (let n = 0; n < 3; n++) image.data[target + n] = overWhite(to8[value(n % colours)], alpha);
        image.data[target + 3] = 255;
      }
    }
  }
  return image;
}

const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

async function inflate(parts, most) {  // as far as the data goes, up to `most` bytes
  const bytes = new Uint8Array(most),
    reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  for (let at = 0; at < most;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return bytes.subarray(0, at);
    bytes.set(value.subarray(0, most - at), at);
    at += value.length;
  }
  return bytes;
}

function unfilter(filter, line, above, pixel) {
  for (let n = 0; n < line.length; n++) {
    const left = n < pixel ? 0 : line[n - pixel], up = above[n], corner = n < pixel ? 0 : above[n - pixel];
    line[n] += filter === 1 ? left : filter === 2 ? up
      : filter === 3 ? left + up >> 1 : filter === 4 ? nearest(left, up, corner) : 0;
  }
}

function nearest(left, up, corner) {  // Paeth's predictor
  const a = Math.abs(up - corner), b = Math.abs(left - corner), c = Math.abs(left + up - 2 * corner);
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

function overWhite(value, alpha) {  // as Pillow's alpha_composite rounds
  const sum = value * (alpha << 7) + 255 * (255 * 128 - (alpha << 7)) + (128 << 7);
  return ((sum >> 8) + sum >> 8) >> 7;
}

// --- The square

// Return the central square of a picture, size x size RGB bytes
async function toSquare(bitmap, turn, stored, size) {
  // Pillow's decoder makes a JPEG 1/2, 1/4 or 1/8 as large, before the picture is turned
  const least = 2 * Math.max(size, MIN_SIDE),
    most = Math.min(Math.floor(bitmap.width / least), Math.floor(bitmap.height / least));
  const by = stored ? [8, 4, 2].find(factor => factor <= most) ?? 1 : 1;  // all but those in CMYK
  const reduced = [bitmap.width, bitmap.height].map(length => Math.ceil(length / by));
  const [width, height] = turn.swap ? [reduced[1], reduced[0]] : reduced, side = Math.min(width, height);
  const across = makeTaps(width, (width - side) / 2, side, size),
    down = makeTaps(height, (height - side) / 2, side, size);
  const pixels = await readUpright(bitmap, turn, reduced, across, down, by, stored);
  const w = across.to - across.from, h = down.to - down.from;
  if (width === size && height === size) return pixels;
  if (height > size && height - size > 2 * (width - size)) {  // Pillow begins with the longer way of a tall picture
    return resample(resample(pixels, w, down, 3, 3 * w, 3, 3 * w), size, across, 3 * w, 3, 3 * size, 3);
  }
  return resample(resample(pixels, h, across, 3 * w, 3, 3 * size, 3), size, down, 3, 3 * size, 3, 3 * size);
}

// Return the weights of bicubic interpolation (a = -0.5), antialiased, as Pillow's integers of 22 bits (Resample.c)
function makeTaps(length, start, side, size) {
  const scale = side / size, stretch = Math.max(1, scale), lines = [];
  for (let n = 0; n < size; n++) {
    const centre = start + (n + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - 2 * stretch + 0.5)),
      end = Math.min(length, Math.trunc(centre + 2 * stretch + 0.5));
    const weights = Array.from({ length: end - first }, (_, m) => {
      const x = Math.abs((first + m - centre + 0.5) * (1 / stretch));
      return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
    });
    const sum = weights.reduce((a, b) => a + b, 0);
    const toInteger = weight => Math.trunc(weight / sum * 2 ** 22 + (weight < 0 ? -0.5 : 0.5));
    lines.push({ first, taps: Int32Array.from(weights, toInteger) });
  }
  return { lines, from: lines[0].first, to: lines[size - 1].first + lines[size - 1].taps.length };
}

// Resample `count` lines of RGB pixels; `line` and `step` are the ways to the next line and to its next pixel
function resample(source, count, { lines, from }, line, step, lineOut, stepOut) {
  const target = new Uint8ClampedArray(3 * count * lines.length);
  lines.forEach(({ first, taps }, n) => {
    for (let l = 0; l < count; l++) {
      let red = 2 ** 21, green = red, blue = red, at = l * line + (first - from) * step;
      for (let m = 0; m < taps.length; m++, at += step) {
        red += source[at] * taps[m];
        green += source[at + 1] * taps[m];
        blue += source[at + 2] * taps[m];
      }
      const to = l * lineOut + n * stepOut;
      target[to] = red >> 22;
      target[to + 1] = green >> 22;
      target[to + 2] = blue >> 22;
    }
  });
  return target;
}

// Return the pixels that the taps reach, upright, of the picture made 1/by as large
async function readUpright(bitmap, { swap, flipU, flipV }, [w, h], across, down, by, stored) {
  const [a, b] = swap ? [down, across] : [across, down];  // along the stored columns, along the stored rows
  const [u0, u1] = flipU ? [w - a.to, w - a.from] : [a.from, a.to],
    [v0, v1] = flipV ? [h - b.to, h - b.from] : [b.from, b.to];
  const source = by > 1 ? readReduced(bitmap, u0, v0, u1, v1, by, stored)
    : await readStored(bitmap, u0, v0, u1, v1);
  if (!swap && !flipU && !flipV) return source;
  const columns = u1 - u0, rows = v1 - v0, width = swap ? rows : columns,
    upright = new Uint8ClampedArray(source.length);
  for (let n = 0, v = 0; v < rows; v++)
    for (let u = 0; u < columns; u++, n += 3) {
      const turnedU = flipU ? columns - 1 - u : u, turnedV = flipV ? rows - 1 - v : v;
      const to = 3 * (swap ? turnedU * width + turnedV : turnedV * width + turnedU);
      upright[to] = source[n];
      upright[to + 1] = source[n + 1];
      upright[to + 2] = source[n + 2];
    }
  return upright;
}

// Yield a rectangle in strips of `rows` rows, so that no canvas is too large, over white: { data, top, height }. Strips
// reach `margin` rows into their neighbours.
function* readStrips(bitmap, x0, y0, x1, y1, rows, margin) {
  const width = x1 - x0, most = Math.min(rows + 2 * margin, bitmap.height);
  const pen = makeCanvas(width, most).getContext("2d", { willReadFrequently: true });
  checkCanvas();
  for (let start = y0; start < y1; start += rows) {
    const top = Math.max(0, start - margin), height = Math.min(bitmap.height, start + rows + margin) - top;
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, width, height);
    pen.drawImage(bitmap, x0, top, width, height, 0, 0, width, height);
    yield { data: pen.getImageData(0, 0, width, height).data, start, top, height };
  }
}

const STRIP = 1e6;  // pixels

// Return a rectangle as RGB over white
async function readStored(bitmap, x0, y0, x1, y1) {
  const width = x1 - x0, target = new Uint8ClampedArray(3 * width * (y1 - y0));
  const frame = await keepsColours() ? new VideoFrame(bitmap, { timestamp: 0 }) : null;
  let to = 0;
  for (const { data, top, height } of readStrips(bitmap, x0, y0, x1, y1, Math.max(1, Math.floor(STRIP / width)), 0)) {
    await frame?.copyTo(data, { format: "RGBA", rect: { x: x0, y: top, width, height } });
    for (let from = 0; from < data.length && to < target.length; from += 4) {
      const alpha = data[from + 3];
      for (let n = from; n < from + 3; n++) target[to++] = alpha < 255 ? overWhite(data[n], alpha) : data[n];
    }
  }
  frame?.close();
  return target;
}

// Return whether a video frame holds a bitmap's colours as they are. Firefox's does, and its canvas rounds them up where
// they are translucent; in Chromium it is the canvas that rounds them as Pillow does.
async function keepsColours() {
  const known = Uint8ClampedArray.of(100, 100, 100, 3), found = new Uint8Array(4);
  try {
    const frame = new VideoFrame(await createImageBitmap(new ImageData(known, 1, 1), AS_STORED), { timestamp: 0 });
    await frame.copyTo(found, { format: "RGBA" });
    frame.close();
  } catch {
    return false;
  }
  return found.every((value, n) => value === known[n]);
}

// --- A JPEG made smaller. It holds 8 x 8 blocks of rounded coefficients, from which Pillow's decoder computes the
// averages of 2 x 2, 4 x 4 or 8 x 8 pixels, and rounds them once. A browser gives the pixels: their coefficients are
// found again by rounding, and averaged in the same way.

// Return columns u0 to u1 and rows v0 to v1 of the picture made 1/by as large, as RGB
function readReduced(bitmap, u0, v0, u1, v1, by, { isRgb, planes }) {
  const left = Math.max(0, (u0 * by & ~15) - 16),
    right = Math.min(bitmap.width, ceil16(u1 * by) + 16), width = right - left;
  const first = by < 8 ? 1 : planes.some(stored => stored?.covers[1] === 2) ? 2 : 8;  // what is averaged at once
  const across = ceil16(width) / by, rows = Math.max(16, Math.floor(STRIP / width) & ~15);
  const target = new Uint8ClampedArray(3 * (u1 - u0) * (v1 - v0)), end = Math.min(bitmap.height, v1 * by);
  let to = 0;
  for (const { data, start, top, height } of readStrips(bitmap, left, v0 * by & ~15, right, end, rows, 16)) {
    const found = toPlanes(data, width, height, first, isRgb)
      .map((plane, n) => reduce(plane, ceil16(width), first, by, planes[n]));
    for (let v = Math.max(v0, start / by); v < Math.min(v1, (start + rows) / by); v++)
      for (let n = (v - top / by) * across + u0 - left / by, last = n + u1 - u0; n < last; n++, to += 3) {
        const y = found[0][n] + 128, blue = found[1][n], red = found[2][n];
        target[to] = isRgb ? y : y + 1.402 * red;
        target[to + 1] = isRgb ? blue + 128 : y - 0.344136 * blue - 0.714136 * red;
        target[to + 2] = isRgb ? red + 128 : y + 1.772 * blue;
      }
  }
  return target;
}

function ceil16(length) {
  return length + 15 & ~15;
}

// Return the averages of by x by RGBA pixels as three planes, -128 to 127: red, green and blue, or brightness and the
// differences of blue and red. The last column and row are repeated until blocks of 16 x 16 pixels are full.
function toPlanes(data, width, height, by, isRgb) {
  const across = ceil16(width) / by, down = ceil16(height) / by,
    planes = [0, 1, 2].map(() => new Float32Array(across * down));
  for (let n = 0, line = 0; line < down; line++)
    for (let column = 0; column < across; column++, n++) {
      let r = 0, g = 0, b = 0;
      for (let y = by * line; y < by * (line + 1); y++)
        for (let x = by * column, first = Math.min(y, height - 1) * width; x < by * (column + 1); x++) {
          const from = 4 * (first + Math.min(x, width - 1));
          r += data[from];
          g += data[from + 1];
          b += data[from + 2];
        }
      r /= by * by;
      g /= by * by;
      b /= by * by;
      const y = 0.299 * r + 0.587 * g + 0.114 * b;
      planes[0][n] = (isRgb ? r : y) - 128;
      planes[1][n] = isRgb ? g - 128 : (b - y) / 1.772;
      planes[2][n] = isRgb ? b - 128 : (r - y) / 1.402;
    }
  return planes;
}

// Half a level is rounded up, also where the sum is not exact
const toLevel = value => Math.floor(value + 0.501);

// Return a plane made 1/by as large, of which each value is the average of first x first of `across` pixels in a line;
// `stored` is how the file holds it, if that is known
function reduce(plane, across, first, by, stored) {
  if (!stored) return average(plane, across / first, by / first, by / first);
  const { table, covers: [wide, high] } = stored,
    isPair = wide > high, left = isPair ? by : by / wide, line = across / wide;
  if (left === 8) {  // the averages are the first coefficients of blocks, in eighths
    const step = table[0] / 8, means = average(plane, across / first, 8 * wide / first, 8 * high / first);
    const levels = means.map(mean => toLevel(step * Math.round(mean / step)));
    return isPair ? Float32Array.from({ length: 2 * levels.length }, (_, n) => levels[n >> 1]) : levels;
  }
  const samples = average(plane, across / first, wide / first, high / first);
  if (wide === 2) undouble(samples, line, samples.length / line, 1, line);
  if (high === 2) undouble(samples, samples.length / line, line, line, 1);
  const levels = averageStored(samples, line, left, table);
  return isPair ? double(levels, line / left) : levels;
}

function average(plane, across, wide, high) {
  if (wide === 1 && high === 1) return plane;
  const width = across / wide, target = new Float32Array(plane.length / wide / high);
  for (let n = 0, from = 0; from < plane.length; from += (high - 1) * across)
    for (const end = n + width; n < end; n++, from += wide) {
      let sum = 0;
      for (let y = 0; y < high; y++) for (let x = 0; x < wide; x++) sum += plane[from + y * across + x];
      target[n] = sum / wide / high;
    }
  return target;
}

// Give each sample of a line two pixels, as libjpeg does: three quarters of each come from its own sample, one
// from the next
function double(plane, across) {
  const target = new Float32Array(2 * plane.length);
  plane.forEach((level, n) => {
    const isFirst = n % across === 0, isLast = (n + 1) % across === 0;
    target[2 * n] = isFirst ? level : Math.floor((3 * level + plane[n - 1] + 1) / 4);
    target[2 * n + 1] = isLast ? level : Math.floor((3 * level + plane[n + 1] + 2) / 4);
  });
  return target;
}

// Turn averages of two pixels into the samples that were doubled to give these, in place. An average has an eighth of
// either neighbour, which is solved by elimination. `step` and `next` are the ways to the next value and to
// the next line.
function undouble(plane, length, lines, step, next) {
  const pivots = new Float32Array(length);
  for (let n = 0; n < length; n++) pivots[n] = (n % (length - 1) ? 0.75 : 0.875) - (n ? 1 / 64 / pivots[n - 1] : 0);
  for (let line = 0; line < lines; line++) {
    let at = line * next;
    for (let n = 1; n < length; n++, at += step) plane[at + step] -= plane[at] / 8 / pivots[n - 1];
    plane[at] /= pivots[length - 1];
    for (let n = length - 2; n >= 0; n--, at -= step) plane[at - step] = (plane[at - step] - plane[at] / 8) / pivots[n];
  }
}

const COSINES = Float64Array.from({ length: 64 }, (_, n) =>
  (n < 8 ? Math.SQRT1_2 : 1) / 2 * Math.cos((2 * (n & 7) + 1) * (n >> 3) * Math.PI / 16));

// Return a plane made 1/by as large, by averages of what its 8 x 8 blocks are if their coefficients are multiples of
// the table's steps
function averageStored(plane, across, by, table) {
  const side = 8 / by, target = new Float32Array(plane.length / by / by),
    block = new Float64Array(64), other = new Float64Array(64);
  const back = Float64Array.from({ length: 8 * side }, (_, n) => {  // the cosines of `by` neighbours, averaged
    let sum = 0;
    for (let m = 0; m < by; m++) sum += COSINES[8 * (n & 7) + by * (n >> 3) + m];
    return sum / by;
  });
  for (let top = 0, to = 0; top < plane.length; top += 8 * across, to += (side - 1) * across / by)
    for (let left = top; left < top + across; left += 8, to += side) {
      for (let n = 0; n < 64; n++) block[n] = plane[left + (n >> 3) * across + (n & 7)];
      transform(block, 8, COSINES, other);
      transform(other, 8, COSINES, block);
      for (let n = 0; n < 64; n++) block[n] = table[n] * Math.round(block[n] / table[n]);
      transform(block, 8, back, other);
      transform(other, side, back, block);
      for (let n = 0; n < side * side; n++)
        target[to + Math.floor(n / side) * across / by + n % side] = toLevel(block[n]);
    }
  return target;
}

// Multiply the first lines of eight values by those of a matrix; the products are columns
function transform(from, lines, matrix, to) {
  for (let line = 0; line < lines; line++)
    for (let k = 0; k < matrix.length; k += 8) {
      const n = 8 * line;
      to[k / 8 * lines + line] = from[n] * matrix[k] + from[n + 1] * matrix[k + 1] + from[n + 2] * matrix[k + 2] +
        from[n + 3] * matrix[k + 3] + from[n + 4] * matrix[k + 4] + from[n + 5] * matrix[k + 5] +
        from[n + 6] * matrix[k + 6] + from[n + 7] * matrix[k + 7];
    }
}

function checkCanvas() {  // browsers that resist fingerprinting give noise instead of pixels, without an error
  const pen = makeCanvas(16, 16).getContext("2d", { willReadFrequently: true }), known = new ImageData(16, 16);
  for (let n = 0; n < known.data.length; n++) known.data[n] = n % 4 === 3 ? 255 : n * 37 % 256;
  pen.putImageData(known, 0, 0);
  if (pen.getImageData(0, 0, 16, 16).data.some((value, n) => value !== known.data[n]))
    throw new Error(
      "this browser hides pixels from pages (protection against fingerprinting): allow it here, or use another");
}

function makeCanvas(width, height) {
  if (self.OffscreenCanvas) return new OffscreenCanvas(width, height);
  return Object.assign(document.createElement("canvas"), { width, height });
}
