// Results as pictures: RGBA over the image's pixels.

// Okabe and Ito, "Color Universal Design" (2008), without black: told apart with any kind of colour vision.
const OKABE_ITO = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [240, 228, 66],
  [0, 114, 178],
  [213, 94, 0],
  [204, 121, 167],
];
const LIGHTER = OKABE_ITO.map((colour) => colour.map((value) => Math.round(value * 0.45 + 255 * 0.55)));
const DARKER = OKABE_ITO.map((colour) => colour.map((value) => Math.round(value * 0.55)));
const COLOURS = [...OKABE_ITO, ...LIGHTER, ...DARKER];

// The colour of object k > 0; the same object has the same one at every threshold that leaves its number.
export function colour(k) {
  return COLOURS[(k - 1) % COLOURS.length];
}

// The image with its objects in colour, `opacity` 0-1, and each object's outermost pixels opaque.
// rgba: Uint8ClampedArray; labels: Int32Array, 0 for no object. Returns Uint8ClampedArray.
export function paintLabels(rgba, width, height, labels, opacity) {
  const result = new Uint8ClampedArray(rgba);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const k = labels[i];
      if (k === 0) continue;
      const edge =
        (x > 0 && labels[i - 1] !== k) ||
        (x + 1 < width && labels[i + 1] !== k) ||
        (y > 0 && labels[i - width] !== k) ||
        (y + 1 < height && labels[i + width] !== k);
      const weight = edge ? 1 : opacity;
      const tint = colour(k);
      for (let c = 0; c < 3; c++) result[4 * i + c] = (1 - weight) * rgba[4 * i + c] + weight * tint[c];
    }
  }
  return result;
}

// Probabilities in grey, 0 black and 1 white.
export function paintProbability(probability) {
  const result = new Uint8ClampedArray(4 * probability.length).fill(255);
  for (let i = 0; i < probability.length; i++) result.fill(255 * probability[i], 4 * i, 4 * i + 3);
  return result;
}

// int32 labels of detections' windows, by falling score: where two overlap, the better one is seen.
export function labelsOfWindows(windows, width, height) {
  const labels = new Int32Array(width * height);
  for (let k = windows.length; k > 0; k--) {
    const { top, left, height: rows, width: columns, inside } = windows[k - 1];
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) {
        if (inside[y * columns + x]) labels[(top + y) * width + left + x] = k;
      }
    }
  }
  return labels;
}
