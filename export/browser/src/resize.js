// Resizing of RGB pixels exactly as detectors are used to it (keras_seg/data/resize.py): by Pillow's bilinear filter,
// which averages where it shrinks, or between the four nearest pixels.

const FIXED_POINT = 2 ** 22; // Pillow's weights are whole multiples of 1 / 2**22, and each axis is rounded to 8 bits

// pixels: Uint8Array [height * width * 3]; from, to: {height, width}; convention: "detectron2" or "torchvision".
// Returns Uint8Array [to.height * to.width * 3]. Rows first, as Pillow does where proportions are kept.
export function resize(pixels, from, to, convention) {
  const weights = convention === "torchvision" ? nearestTwo : triangle;
  const wide = alongColumns(pixels, from.height, from.width, weights(from.width, to.width));
  const whole = alongRows(wide, from.height, to.width, weights(from.height, to.height));
  return whole instanceof Uint8Array ? whole : Uint8Array.from(whole, Math.round);
}

// Half-way numbers go to the even one, as in Python.
export function roundToEven(value) {
  const low = Math.floor(value);
  if (value - low !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

// For each of `after` pixels: the first of `before` that counts, and the weights from there on.
function triangle(before, after) {
  const scale = before / after;
  const reach = Math.max(scale, 1);
  const exact = before === after;
  const taps = Array.from({ length: after }, (_, k) => {
    const centre = (k + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const stop = Math.min(before, Math.trunc(centre + reach + 0.5));
    const weights = Array.from({ length: stop - first }, (_, n) =>
      Math.max(0, 1 - Math.abs((first + n + 0.5 - centre) / reach)),
    );
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => Math.trunc(0.5 + (weight / sum) * FIXED_POINT)) };
  });
  return {
    taps: exact ? null : taps,
    finish: (sum) => Math.min(255, Math.floor((sum + FIXED_POINT / 2) / FIXED_POINT)),
    Type: Uint8Array,
  };
}

function nearestTwo(before, after) {
  const scale = Math.fround(before / after);
  const taps = Array.from({ length: after }, (_, k) => {
    const centre = Math.max(Math.fround(Math.fround((k + 0.5) * scale) - 0.5), 0);
    const first = Math.min(Math.trunc(centre), before - 1);
    const share = Math.fround(centre - first);
    return first + 1 < before ? { first, weights: [1 - share, share] } : { first, weights: [1] };
  });
  return { taps, finish: (sum) => sum, Type: Float32Array };
}

function alongColumns(pixels, height, width, { taps, finish, Type }) {
  if (!taps) return pixels;
  const result = new Type(height * taps.length * 3);
  for (let y = 0, next = 0; y < height; y++) {
    for (const { first, weights } of taps) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let n = 0; n < weights.length; n++) sum += weights[n] * pixels[(y * width + first + n) * 3 + c];
        result[next++] = finish(sum);
      }
    }
  }
  return result;
}

function alongRows(pixels, height, width, { taps, finish, Type }) {
  if (!taps) return pixels;
  const result = new Type(taps.length * width * 3);
  let next = 0;
  for (const { first, weights } of taps) {
    for (let x = 0; x < width * 3; x++) {
      let sum = 0;
      for (let n = 0; n < weights.length; n++) sum += weights[n] * pixels[(first + n) * width * 3 + x];
      result[next++] = finish(sum);
    }
  }
  return result;
}
