// Masks of boxes as masks of the image, as in keras_seg/ops/masks.py, whose two conventions place a mask in its box.

// A value that equals the threshold is inside; this keeps it there in spite of rounding.
const TIE = 1e-9;

// The part of an image around a mask's box: {top, left, height, width, inside: Uint8Array [height * width] of 0 and
// 1}. mask: [cells * cells] probabilities; box: x1, y1, x2, y2 in pixels of an image with the given sides.
export function pasteWindow(mask, cells, box, sides, convention, threshold = 0.5) {
  const y = axis(box[1], box[3], cells, sides.height, convention);
  const x = axis(box[0], box[2], cells, sides.width, convention);
  const [height, width] = [y.stop - y.start, x.stop - x.start];
  const inside = new Uint8Array(height * width);
  const line = new Float64Array(cells);
  const columns = Array.from({ length: width }, (_, k) => share(x, k, cells));
  for (let row = 0; row < height; row++) {
    const [low, lowShare, highShare] = share(y, row, cells);
    for (let c = 0; c < cells; c++) {
      line[c] = at(mask, low, c, cells) * lowShare + at(mask, low + 1, c, cells) * highShare;
    }
    for (let column = 0; column < width; column++) {
      const [left, leftShare, rightShare] = columns[column];
      const value = (line[left] ?? 0) * leftShare + (line[left + 1] ?? 0) * rightShare;
      inside[row * width + column] = value >= threshold - TIE ? 1 : 0;
    }
  }
  return { top: y.start, left: x.start, height, width, inside };
}

// COCO's run lengths of a window in its image, uncompressed: column by column, zeros first.
export function runLengths(window, sides) {
  const counts = [];
  let [value, run] = [0, 0];
  const take = (next, length) => {
    if (length === 0) return;
    if (next !== value) {
      counts.push(run);
      [value, run] = [next, 0];
    }
    run += length;
  };
  const below = sides.height - window.top - window.height;
  take(0, window.left * sides.height);
  for (let x = 0; x < window.width; x++) {
    take(0, window.top);
    for (let y = 0; y < window.height; y++) take(window.inside[y * window.width + x], 1);
    take(0, below);
  }
  take(0, (sides.width - window.left - window.width) * sides.height);
  counts.push(run);
  return { size: [sides.height, sides.width], counts };
}

function at(mask, row, column, cells) {
  return row >= 0 && row < cells ? mask[row * cells + column] || 0 : 0; // what is not a number counts as 0
}

// Cell k has its centre at first + k * spacing; the pixels start ... stop - 1 may be inside.
function axis(low, high, cells, length, convention) {
  if (!Number.isFinite(low) || !Number.isFinite(high) || high < low)
    return { first: 0, spacing: 1, start: 0, stop: 0 };
  let first, spacing, start, stop;
  if (convention === "torchvision") {
    const [middle, half] = [(low + high) / 2, (((high - low) / 2) * (cells + 2)) / cells];
    [start, stop] = [Math.trunc(middle - half), Math.trunc(middle + half) + 1];
    spacing = (stop - start) / (cells + 2);
    first = start + 1.5 * spacing;
  } else {
    if (high === low) return { first: 0, spacing: 1, start: 0, stop: 0 };
    spacing = (high - low) / cells;
    first = low + spacing / 2;
    [start, stop] = [Math.floor(low) - 1, Math.ceil(high) + 1];
  }
  start = Math.min(Math.max(start, 0), length);
  return { first, spacing, start, stop: Math.max(start, Math.min(stop, length)) };
}

// For the k-th pixel of an axis: the cell before it, the share of that one and the share of the next.
function share(axis, k, cells) {
  const position = (axis.start + k + 0.5 - axis.first) / axis.spacing;
  const low = Math.min(Math.max(Math.floor(position), -2), cells);
  return [low, Math.max(0, 1 - Math.abs(position - low)), Math.max(0, 1 - Math.abs(position - low - 1))];
}
