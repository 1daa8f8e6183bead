// A detector over an image of any size: what keras_seg.segment gives where the resized image is the network's input,
// and close to it elsewhere.
//
// Where a pixel is a length (model.scale), larger images go through in overlapping windows; others are made to fit.

import { channelsOf } from "./channels.js";
import { resize, roundToEven } from "./resize.js";

const OVERLAP = 0.25; // of a window's side: objects up to that size are whole in one of the windows
const EDGE = 2; // pixels; boxes nearer to a window's inner border may be cut off by it
// Two boxes that overlap by more are one object: in shares of their union, or of the one that is cut off.
const SAME_OBJECT = 0.5;

// picture: {width, height, rgba}; network: of runtime.js; model: an entry of models.json; onProgress(done, total).
// Returns by falling score {boxes: Float32Array [4 N] in pixels of the picture, scores [N], classes: Int32Array [N]}
// and, with masks, {masks: Float32Array [N * maskSide ** 2], maskSide}.
export async function runDetector(picture, network, model, _options, onProgress) {
  const pixels = channelsOf(picture.rgba, 3, Uint8Array);
  const size = resizedSize(picture, network.input, model);
  const resized = resize(pixels, picture, size, model.convention);
  const windows = starts(size.height, network.input.height).flatMap((top) =>
    starts(size.width, network.input.width).map((left) => ({ top, left })),
  );
  const found = [];
  let maskSide = 0;
  onProgress(0, windows.length);
  for (const [done, window] of windows.entries()) {
    const outputs = await network.run(filled(resized, size, window, network.input, model.fill));
    maskSide = outputs.masks?.shape[2] ?? 0;
    found.push(...detections(outputs, window, size, network.input, maskSide ** 2));
    onProgress(done + 1, windows.length);
  }
  return arrays(windows.length > 1 ? withoutDoubles(found) : found, picture, size, maskSide);
}

// The picture's sides when the network sees it.
export function resizedSize({ height, width }, input, model) {
  const scaled = (factor, round) => ({
    height: Math.max(1, round(height * factor)),
    width: Math.max(1, round(width * factor)),
  });
  if (model.scale) return scaled(model.scale, roundToEven);
  // whole, whatever rounding does
  const { height: h, width: w } = scaled(Math.min(input.height / height, input.width / width), Math.round);
  return { height: Math.min(h, input.height), width: Math.min(w, input.width) };
}

// Where windows start along an axis: as evenly as it can be, the last at the end.
export function starts(length, window) {
  const count = Math.max(1, Math.ceil((length - OVERLAP * window) / ((1 - OVERLAP) * window)));
  const room = Math.max(0, length - window);
  return Array.from({ length: count }, (_, k) => (count > 1 ? Math.round((k * room) / (count - 1)) : 0));
}

// The window's pixels; beyond the image the mean colour, which is nothing to the network.
function filled(pixels, size, { top, left }, { height, width }, fill) {
  const input = new Uint8Array(height * width * 3);
  const across = Math.min(width, size.width - left);
  for (let y = 0; y < height; y++) {
    const row = y * width * 3;
    const inside = top + y < size.height ? across : 0;
    const from = ((top + y) * size.width + left) * 3;
    if (inside > 0) input.set(pixels.subarray(from, from + inside * 3), row);
    for (let x = inside; x < width; x++) input.set(fill, row + x * 3);
  }
  return input;
}

// Objects {box in pixels of the resized picture, score, class, mask, cut}.
function detections(outputs, { top, left }, size, input, cells) {
  const count = outputs.num_detections.values[0];
  return Array.from({ length: count }, (_, k) => {
    const [x1, y1, x2, y2] = outputs.boxes.values.subarray(4 * k, 4 * k + 4);
    const cut =
      (left > 0 && x1 < EDGE) ||
      (top > 0 && y1 < EDGE) ||
      (left + input.width < size.width && x2 > input.width - EDGE) ||
      (top + input.height < size.height && y2 > input.height - EDGE);
    return {
      box: [x1 + left, y1 + top, x2 + left, y2 + top],
      score: outputs.scores.values[k],
      class: outputs.classes.values[k],
      mask: outputs.masks?.values.subarray(k * cells, (k + 1) * cells),
      cut,
    };
  });
}

// Of an object that several windows saw the best view: one that no border cuts, then the higher score.
export function withoutDoubles(found) {
  const kept = [];
  for (const one of found.toSorted((a, b) => a.cut - b.cut || b.score - a.score)) {
    const double = kept.some((other) => {
      if (other.class !== one.class) return false;
      const [area, otherArea, both] = [areaOf(one.box), areaOf(other.box), common(one.box, other.box)];
      return both > SAME_OBJECT * (area + otherArea - both) || (one.cut && both > SAME_OBJECT * area);
    });
    if (!double) kept.push(one);
  }
  return kept.sort((a, b) => b.score - a.score);
}

function areaOf([x1, y1, x2, y2]) {
  return Math.max(0, x2 - x1) * Math.max(0, y2 - y1);
}

function common(a, b) {
  return areaOf([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
}

function arrays(found, picture, size, maskSide) {
  const factors = [picture.width / size.width, picture.height / size.height];
  const inPicture = ({ box }) =>
    box.map((value, k) => Math.min(Math.max(value * factors[k % 2], 0), k % 2 ? picture.height : picture.width));
  // What lay in the filling alone has no extent here.
  const inside = found.map((one) => ({ ...one, box: inPicture(one) })).filter(({ box }) => areaOf(box) > 0);
  const masks = new Float32Array(maskSide ? inside.length * maskSide ** 2 : 0);
  if (maskSide) inside.forEach(({ mask }, k) => masks.set(mask, k * maskSide ** 2));
  return {
    boxes: Float32Array.from(inside.flatMap(({ box }) => box)),
    scores: Float32Array.from(inside, ({ score }) => score),
    classes: Int32Array.from(inside, (one) => one.class),
    ...(maskSide && { masks, maskSide }),
  };
}
