// --- The network: a square of RGB bytes -> probabilities, its strangeness, and where the evidence for a class is.
//
// What is computed is described in layout.py. All numbers and maps lie in one memory, counted in floats. Each map has a
// border of zeros as wide as the largest dilation, so that a convolution needs no other padding.

function makeNetwork(model, numbers, wasm) {
  const { image_size, temperature, network: { scale, shift, layers, pooled, classes, familiar } } = model;
  const border = Math.max(...layers.map(layer => layer.dilation)), maps = [], calls = [];
  let size = numbers.length, next = 0;

  const addMap = (side, channels) => {
    const pitch = (side + 2 * border) * channels;
    maps.push({ side, channels, pitch, first: size + border * (pitch + channels) });
    size += (side + 2 * border) * pitch;
  };
  addMap(image_size, 3);
  for (const { source, added, relu, inputs, outputs, kernel, stride, dilation } of layers) {
    const from = maps[source];
    addMap(Math.ceil(from.side / stride), outputs);
    const to = maps.at(-1), reach = (kernel - 1) / 2 * dilation;
    const start = from.first - reach * (from.pitch + inputs), way = added === null ? 0 : maps[added].first - to.first;
    calls.push([
      start, from.pitch, next, inputs, outputs, kernel, stride, dilation, to.side, way, +relu, to.first, to.pitch,
    ]);
    next += (kernel * kernel * inputs + 1) * outputs;
  }
  const { memory, convolve } = makeKernel(4 * size, wasm), floats = new Float32Array(memory);
  floats.set(numbers);

  const picture = maps[0], last = maps.at(-1), places = last.side ** 2, features = pooled.length * last.channels;
  const weight = (label, feature) => floats[next + label * features + feature];
  const activation = (place, channel) =>
    floats[last.first + Math.floor(place / last.side) * last.pitch + place % last.side * last.channels + channel];
  const meanWeights = Array.from({ length: features }, (_, feature) => {
    let sum = 0;
    for (let label = 0; label < classes; label++) sum += weight(label, feature);
    return sum / classes;
  });

  function pool() {  // each channel's maximum, its place, and its mean
    return Array.from({ length: last.channels }, (_, channel) => {
      let max = -Infinity, place = 0, sum = 0;
      for (let n = 0; n < places; n++) {
        const value = activation(n, channel);
        if (value > max) [max, place] = [value, n];
        sum += value;
      }
      return { max, place, avg: sum / places };
    });
  }

  return square => {
    const row = 3 * image_size;
    square.forEach((value, n) => {
      floats[picture.first + Math.floor(n / row) * picture.pitch + n % row] = value * scale + shift;
    });
    for (const call of calls) convolve(...call);

    const channels = pool(), values = pooled.flatMap(name => channels.map(channel => channel[name]));
    const logits = Array.from({ length: classes }, (_, label) => {
      const bias = floats[next + classes * features + label];
      return values.reduce((sum, value, feature) => sum + value * weight(label, feature), bias);
    });
    const highest = logits.reduce((a, b) => Math.max(a, b));
    const odds = logits.map(logit => Math.exp((logit - highest) / temperature)), sum = odds.reduce((a, b) => a + b);

    // model/evidence.py: what each place of the last map adds to a class's logit, less what it adds to the mean logit
    const evidence = label => {
      const parts = new Float32Array(places);
      pooled.forEach((name, copy) => channels.forEach(({ max, place }, channel) => {
        const feature = copy * channels.length + channel, lead = weight(label, feature) - meanWeights[feature];
        if (name === "max") parts[place] += lead * max;
        else for (let n = 0; n < places; n++) parts[n] += lead * activation(n, channel) / places;
      }));
      return parts;
    };
    const strangeness = familiar ? measure(values, logits, highest) : null;
    return { probabilities: odds.map(odd => odd / sum), strangeness, evidence };
  };

  function measure(values, logits, highest) {  // model/strangers.py
    const first = next + classes * features + classes, means = first + features, usual = means + classes * features;
    const distances = logits.map((_, label) => Math.hypot(...values.map((value, feature) =>
      value * floats[first + feature] - floats[means + label * features + feature])));
    const energy = highest + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - highest), 0));
    const [distance, recognised] = [Math.min(...distances), energy].map((value, n) =>
      (value - floats[usual + 2 * n]) / floats[usual + 2 * n + 1]);
    return distance - recognised;
  }
}

function makeKernel(bytes, wasm) {
  try {
    const memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) });
    const { convolve } = new WebAssembly.Instance(new WebAssembly.Module(wasm), { env: { memory } }).exports;
    return { memory: memory.buffer, convolve };
  } catch {  // WebAssembly is forbidden, or older than its 128-bit numbers: about nine times as slow
    const memory = new ArrayBuffer(bytes);
    return { memory, convolve: plainKernel(new Float32Array(memory)) };
  }
}

function plainKernel(floats) {  // kernel.c in JavaScript, two pixels x four outputs at once
  return (
    source, sourcePitch, weights, inputs, outputs, kernel, stride, dilation, side, added, relu, target, targetPitch,
  ) => {
    const biases = weights + kernel * kernel * inputs * outputs;
    const finish = (sum, place) => {
      const total = added ? sum + floats[place + added] : sum;
      floats[place] = relu && total < 0 ? 0 : total;
    };
    for (let output = 0; output < outputs; output += 4)
      for (let row = 0; row < side; row++)
        for (let column = 0; column < side; column += 2) {
          const step = column + 1 < side ? stride * inputs : 0;
          let a0 = floats[biases + output], a1 = floats[biases + output + 1];
          let a2 = floats[biases + output + 2], a3 = floats[biases + output + 3];
          let b0 = a0, b1 = a1, b2 = a2, b3 = a3;
          let w = weights + (output - output % 8) * kernel * kernel * inputs + output % 8;
          for (let i = 0; i < kernel; i++)
            for (let j = 0; j < kernel; j++) {
              let x = source + (row * stride + i * dilation) * sourcePitch + (column * stride + j * dilation) * inputs;
              for (const end = x + inputs; x < end; x++, w += 8) {
                const a = floats[x], b = floats[x + step];
                const w0 = floats[w], w1 = floats[w + 1], w2 = floats[w + 2], w3 = floats[w + 3];
                a0 += a * w0; a1 += a * w1; a2 += a * w2; a3 += a * w3;
                b0 += b * w0; b1 += b * w1; b2 += b * w2; b3 += b * w3;
              }
            }
          const place = target + row * targetPitch + column * outputs + output;
          finish(a0, place); finish(a1, place + 1); finish(a2, place + 2); finish(a3, place + 3);
          if (!step) continue;
          const second = place + outputs;
          finish(b0, second); finish(b1, second + 1); finish(b2, second + 2); finish(b3, second + 3);
        }
  };
}
