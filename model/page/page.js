// --- The page. The same script runs as its worker, where there is no document.

const SOURCE = self.document?.currentScript.textContent;
const SHOWN = 3;  // number of likeliest classes
const DOUBTS = { "not sure": "Not sure: a guess at best", stranger: "Unlike anything it has learned" };
const LOOKED_SIDE = 256, SHADE = 0.8;  // pixels; how dark the places are that say nothing

function bytesOf(base64) {  // ten times as fast as Uint8Array.from with a function
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let n = 0; n < bytes.length; n++) bytes[n] = text.charCodeAt(n);
  return bytes;
}

// Return a function that maps a file to { best, strangeness, square, small, turn }, or to { error }, why not in a line
function makeClassifier(model) {
  let network;
  return async file => {
    try {
      network ??= makeNetwork(model, new Float32Array(bytesOf(model.numbers).buffer), bytesOf(model.kernel));
      const { square, small, turn } = await readPicture(file, model.image_size, model.ranges);
      const { probabilities, strangeness, evidence } = network(square);
      if (!probabilities.every(Number.isFinite)) return { error: "the network's numbers overflow" };
      const order = probabilities.map((_, label) => label).sort((a, b) => probabilities[b] - probabilities[a]);
      const best = order.slice(0, SHOWN)
        .map(label => ({ label, probability: probabilities[label], evidence: evidence(label) }));
      return { best, strangeness, square, small, turn };
    } catch (error) {
      return { error: error instanceof RangeError ? "too large for the free memory" : error.message };
    }
  };
}

if (self.document) {
  startPage(JSON.parse(document.getElementById("model").textContent));
} else {
  let classify;
  onmessage = async ({ data: { model, file } }) => {
    if (model) return void (classify = makeClassifier(model));
    const answer = await classify(file);
    postMessage(answer, answer.small ? [answer.small] : []);
  };
}

function startPage(model) {
  const at = id => document.getElementById(id), shown = Math.min(SHOWN, model.classes.length);
  const size = model.image_size, entries = [];
  let queue = Promise.resolve();

  function make(tag, properties = {}, ...children) {
    const { label, ...rest } = properties, made = Object.assign(document.createElement(tag), rest);
    if (label !== undefined) made.setAttribute("aria-label", label);
    made.append(...children);
    return made;
  }

  // --- Answers: from a worker, which keeps the page alive; where none is allowed, from the page's own thread

  let worker = null, wake = () => {};
  try {
    worker = new Worker(URL.createObjectURL(new Blob([SOURCE], { type: "text/javascript" })));
    worker.onmessage = ({ data }) => wake(data);
    worker.onerror = () => { worker = null; wake(null); };
    worker.postMessage({ model });
  } catch {
    worker = null;
  }
  const classifyHere = makeClassifier(model);

  async function ask(file) {
    const answer = worker && await new Promise(resolve => { wake = resolve; worker.postMessage({ file }); });
    if (answer) return answer;
    await new Promise(resolve => setTimeout(resolve));  // lets the browser draw
    return classifyHere(file);
  }

  // --- Pictures come and go

  function take(files) {
    const added = files.map(file => ({
      file, name: printable(file.name || "pasted picture"), card: make("li", { className: "card" }),
    }));
    entries.unshift(...added);
    added.forEach(showWaiting);
    at("cards").prepend(...added.map(entry => entry.card));
    for (const entry of added) queue = queue.then(() => answer(entry));
    if (added.length) tell();
  }

  async function answer(entry) {
    if (!entries.includes(entry)) return;  // removed in the meantime
    Object.assign(entry, await ask(entry.file));
    if (!entries.includes(entry)) return;
    if (entry.error) showError(entry);
    else {
      entry.verdict = judge(entry);
      showAnswer(entry);
    }
    tell();
  }

  function remove(entry) {
    const place = entries.indexOf(entry);
    entries.splice(place, 1);
    entry.card.remove();
    const next = entries[Math.min(place, entries.length - 1)];
    (next ? next.card.querySelector(".remove") : at("choose")).focus();
    tell();
  }

  function startAgain() {
    entries.length = 0;
    at("cards").replaceChildren();
    at("choose").focus();
    tell();
  }

  function tell() {
    const read = entries.filter(entry => entry.best), failed = entries.filter(entry => entry.error);
    const left = entries.length - read.length - failed.length,
      count = `${read.length} ${read.length === 1 ? "picture" : "pictures"}`;
    const parts = [count, ...failed.length ? [`${failed.length} not read`] : [], ...left ? [`${left} to go`] : []];
    at("status").textContent = entries.length ? parts.join(", ") : "";
    document.body.classList.toggle("begun", entries.length > 0);
    if (left) return;
    const spoken = ({ best, verdict }) => (DOUBTS[verdict] ? `${DOUBTS[verdict]}, ` : "") +
      `${printable(model.classes[best[0].label])}, ${percent(best[0].probability)}`;
    const few = entries.slice(0, 5).map(entry => `${entry.name}: ${entry.error ?? spoken(entry)}`);
    at("spoken").textContent = entries.length ? [parts.join(", "), ...few].join(". ") : "No pictures";
  }

  // --- A card

  function showWaiting(entry) {
    const rows = Array.from({ length: shown }, () => make("li", { className: "guess" }, "\u00a0"));
    entry.card.replaceChildren(title(entry),
      views(make("div", { className: "view" }), make("div", { className: "view" })),
      ...doubt(entry), make("ol", { className: "guesses" }, ...rows), removal(entry));
  }

  function judge({ best, strangeness }) {
    if (model.strangest !== null && strangeness > model.strangest) return "stranger";
    return model.sure === null ? "" : best[0].probability >= model.sure ? "sure" : "not sure";
  }

  function doubt({ verdict }) {  // its line is there from the start, so that nothing moves
    if (model.sure === null && model.strangest === null) return [];
    return [make("p", { className: "verdict", textContent: DOUBTS[verdict] ?? "\u00a0" })];
  }

  function showError(entry) {
    entry.card.className = "card failed";
    const name = make("b", { textContent: entry.name, dir: "auto" });
    entry.card.replaceChildren(make("p", {}, name, `: ${entry.error}`), removal(entry));
  }

  function showAnswer(entry) {
    const label = `${entry.name}; the bright square is what the network sees`;
    const whole = make("canvas", { className: "view", label });
    const looked = make("canvas", { className: "view", width: LOOKED_SIDE, height: LOOKED_SIDE });
    for (const canvas of [whole, looked]) canvas.setAttribute("role", "img");
    drawWhole(whole, entry);
    const buttons = entry.best.map((guess, place) => {
      const name = printable(model.classes[guess.label]), bar = make("i");
      bar.style.width = `${100 * guess.probability}%`;
      const button = make("button", { type: "button", className: "guess", title: name },
        make("span", { className: "class", textContent: name, dir: "auto" }),
        make("span", { className: "share", textContent: percent(guess.probability) }),
        make("span", { className: "bar" }, bar));
      button.onclick = () => choose(place);
      return button;
    });
    const choose = place => {
      buttons.forEach((button, n) => button.setAttribute("aria-pressed", n === place));
      looked.setAttribute("aria-label",
        `Where the network looked for ${printable(model.classes[entry.best[place].label])}`);
      drawLooked(looked, entry.square, entry.best[place].evidence);
    };
    choose(0);
    const rows = buttons.map(button => make("li", {}, button));
    entry.card.classList.toggle("doubtful", entry.verdict in DOUBTS);
    entry.card.classList.toggle("stranger", entry.verdict === "stranger");
    entry.card.replaceChildren(title(entry), views(whole, looked), ...doubt(entry),
      make("ol", { className: "guesses" }, ...rows), removal(entry));
  }

  function title(entry) {
    return make("h2", { textContent: entry.name, title: entry.name, dir: "auto" });
  }

  function views(whole, looked) {
    return make("div", { className: "views" },
      make("figure", {}, whole, make("figcaption", { textContent: "what it sees" })),
      make("figure", {}, looked, make("figcaption", { textContent: "where it looked" })));
  }

  function removal(entry) {
    return make("button", { type: "button", className: "remove", textContent: "×",
      label: `Remove ${entry.name}`, onclick: () => remove(entry) });
  }

  function drawWhole(canvas, { small, turn: { swap, flipU, flipV } }) {  // upright, on white, dimmed outside the square
    const [w, h] = [small.width, small.height], side = Math.min(w, h), pen = canvas.getContext("2d");
    [canvas.width, canvas.height] = swap ? [h, w] : [w, h];
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const [u, v] = [flipU ? -1 : 1, flipV ? -1 : 1], [left, top] = [flipU ? w : 0, flipV ? h : 0];
    pen.setTransform(...swap ? [0, u, v, 0, top, left] : [u, 0, 0, v, left, top]);
    pen.drawImage(small, 0, 0);
    small.close();
    pen.resetTransform();
    pen.fillStyle = "rgb(0 0 0 / 0.6)";
    pen.rect(0, 0, canvas.width, canvas.height);
    pen.rect((canvas.width - side) / 2, (canvas.height - side) / 2, side, side);
    pen.fill("evenodd");
  }

  function drawLooked(canvas, square, evidence) {  // as `spotlight` in model/evidence.py
    const side = Math.sqrt(evidence.length), image = new ImageData(size, size), mask = new ImageData(side, side);
    for (let n = 0; n < size * size; n++)
      image.data.set([square[3 * n], square[3 * n + 1], square[3 * n + 2], 255], 4 * n);
    let light = evidence.map(value => Math.max(0, value));
    for (const [step, length] of [[1, side], [side, side * side], [1, side], [side, side * side]])
      light = light.map((value, n) => {
        const start = n - n % length, before = n - step < start ? n : n - step,
          after = n + step >= start + length ? n : n + step;
        return (light[before] + 2 * value + light[after]) / 4;
      });
    const most = Math.max(...light) || 1;
    light.forEach((value, n) => { mask.data[4 * n + 3] = 255 * SHADE * (1 - Math.sqrt(value / most)); });
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    for (const layer of [image, mask]) {
      const small = makeCanvas(layer.width, layer.height);
      small.getContext("2d").putImageData(layer, 0, 0);
      pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    }
  }

  // --- The table of all answers

  function save() {
    const numbers = Array.from({ length: shown }, (_, n) => n + 1);
    const head = ["path", "error", "answer", ...numbers.flatMap(n => [`class_${n}`, `probability_${n}`])];
    const read = entries.filter(entry => entry.best || entry.error);
    const rows = read.map(({ name, error = "", best = [], verdict = "" }) =>
      [asText(name, "./"), error, verdict,
        ...best.flatMap(({ label, probability }) => [asText(printable(model.classes[label]), "'"), probability])]);
    const lines = [head, ...rows].map(row =>
      row.map(cell => `"${String(cell).replaceAll('"', '""')}"`).join(",") + "\n");
    const href = URL.createObjectURL(new Blob(["\ufeff", ...lines], { type: "text/csv" }));
    const link = make("a", { href, download: "classified.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  }

  // --- Inputs

  for (const input of [at("choose"), at("camera")]) {
    input.onchange = () => { take([...input.files]); input.value = ""; };
    input.onkeydown = event => { if (event.key === "Enter") input.click(); };  // Chromium opens it by space only
  }
  at("save").onclick = save;
  at("print").onclick = () => print();
  at("again").onclick = startAgain;
  addEventListener("paste", ({ clipboardData }) => take([...clipboardData.files]));
  addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over"); });
  addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  addEventListener("drop", event => {
    event.preventDefault();
    document.body.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  at("classes").append(...model.classes.map(name => make("li", { textContent: printable(name), dir: "auto" })));
  document.body.classList.toggle("touch", matchMedia("(any-pointer: coarse)").matches || navigator.maxTouchPoints > 0);
}

function percent(share) {
  return share < 0.01 ? "< 1 %" : share > 0.99 ? "> 99 %" : `${Math.round(100 * share)} %`;
}

function printable(text) {  // as model/files.py does it: line breaks, control characters and the like become escapes
  const short = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
  return text.replace(/(?! )[\p{C}\p{Z}]/gu, one => {
    const code = one.codePointAt(0), [letter, length] = code < 256 ? ["x", 2] : code < 65536 ? ["u", 4] : ["U", 8];
    return short[one] ?? `\\${letter}${code.toString(16).padStart(length, "0")}`;
  });
}

function asText(text, mark) {  // a spreadsheet takes what begins so for a formula
  return /^[=+\-@]/.test(text) && !(mark === "'" && Number.isFinite(Number(text))) ? mark + text : text;
}
