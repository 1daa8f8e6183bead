// Whether this browser computes what Python computes, tried before the first picture: no runtime, and no browser, is
// trusted with numbers (README.md says which have given wrong ones).

const DISCS = 24;

// Throws if the network's answers to `checkPicture` are not those of the model's entry in models.json.
export async function checkNetwork(network, { check }) {
  const { height, width, channels, Type } = network.input;
  const outputs = await network.run(Type.from(checkPicture(height, width, channels)));
  const share = shareOfAnswers(outputs, check);
  if (!(share >= check.tolerances.share)) {
    throw new Error(
      `In this browser the model gives other numbers than in Python (${Math.round(100 * share)} % are the same), so the ` +
        "page does not use it. Update the browser or try another one.",
    );
  }
}

// Bright discs on dark ground: Uint8Array [height * width * channels], as keras_seg/export/browser_model.py has it.
export function checkPicture(height, width, channels) {
  let state = 1;
  const number = (below) => {
    state = (Math.imul(1664525, state) + 1013904223) >>> 0;
    return (state >>> 16) % below;
  };
  const picture = new Uint8Array(height * width);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) picture[i] = 20 + ((7 * x + 13 * y + x * y) % 8);
  }
  for (let k = 0; k < DISCS; k++) {
    const [left, top, radius, light] = [number(width), number(height), 6 + number(18), 90 + number(120)];
    for (let y = Math.max(0, top - radius); y < Math.min(height, top + radius); y++) {
      for (let x = Math.max(0, left - radius); x < Math.min(width, left + radius); x++) {
        if ((x - left) ** 2 + (y - top) ** 2 < radius ** 2) picture[y * width + x] = light;
      }
    }
  }
  const result = new Uint8Array(picture.length * channels);
  for (let i = 0; i < result.length; i++) result[i] = picture[Math.floor(i / channels)];
  return result;
}

// outputs: {name: {values, shape}}; check: the answers. Returns the share, 0-1, that is within the tolerances.
export function shareOfAnswers(outputs, check) {
  const { tolerances } = check;
  if (check.probabilities) {
    const { values } = outputs.probabilities;
    const same = check.probabilities.filter(
      (value, k) => Math.abs(values[k * check.step] - value) <= tolerances.probabilities,
    );
    return same.length / check.probabilities.length;
  }
  const count = outputs.num_detections.values[0];
  const numbers = Math.max(count, check.count) ? Math.min(count, check.count) / Math.max(count, check.count) : 1;
  if (!check.objects.length) return numbers;
  const cells = outputs.masks ? outputs.masks.shape[2] ** 2 : 0;
  const same = check.objects.filter((one) => {
    for (let k = 0; k < count; k++) {
      const box = outputs.boxes.values.subarray(4 * k, 4 * k + 4);
      if (
        outputs.classes.values[k] === one.class &&
        box.every((value, side) => Math.abs(value - one.box[side]) <= tolerances.boxes) &&
        Math.abs(outputs.scores.values[k] - one.score) <= tolerances.scores &&
        (one.mask === undefined ||
          Math.abs(mean(outputs.masks.values.subarray(k * cells, (k + 1) * cells)) - one.mask) <= tolerances.masks)
      ) {
        return true;
      }
    }
    return false;
  });
  return Math.min(numbers, same.length / check.objects.length);
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
