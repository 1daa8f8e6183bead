// How an image of any size goes through a network for images of one size, so that the joined result is that of the
// whole image (keras_seg/overlap_tile.py): in overlapping windows, continued beyond the image by mirroring, and
// turned.

// Windows along an axis of `length` pixels, [{start, from, to}]: of the window that starts at `start`, the pixels
// from ... to - 1 of the image are used, each pixel once. The network mirrors what it is given at its borders, so
// within `border` pixels of a window's side its result is right only where that side is the image's. Windows start at
// multiples of `multiple`, where pooling has the phase that it has in the whole image. The last may reach beyond the
// image.
export function windows(length, side, border, multiple) {
  if (side < 2 * border + multiple && side !== length) {
    throw new Error(`The model's input of ${side} pixels a side is too small for images of other sizes.`);
  }
  const found = [];
  let [start, from] = [0, 0];
  for (;;) {
    const to = start + side === length ? length : Math.min(length, start + side - border);
    found.push({ start, from, to });
    if (to === length) return found;
    from = to;
    start = Math.floor((to - border) / multiple) * multiple;
  }
}

// Position on an axis of `length` pixels that is continued by mirroring, as often as it takes; border pixels are not
// repeated.
export function mirrored(index, length) {
  const period = Math.max(2 * (length - 1), 1);
  const position = ((index % period) + period) % period;
  return length > 1 ? Math.min(position, period - position) : position;
}

// The pixels [height, width, channels] from (top, left) on, which may be negative, of `pixels` with the given sides.
export function cut(pixels, sides, top, left, height, width, channels) {
  const tile = new pixels.constructor(height * width * channels);
  const columns = Int32Array.from({ length: width }, (_, x) => mirrored(left + x, sides.width) * channels);
  let next = 0;
  for (let y = 0; y < height; y++) {
    const row = mirrored(top + y, sides.height) * sides.width * channels;
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < channels; c++) tile[next++] = pixels[row + columns[x] + c];
    }
  }
  return tile;
}

// The k-th symmetry of a square tile [side, side, channels]: k turns of 90 degrees counter-clockwise; from 4 on of
// its mirror image (left to right).
export function turn(tile, side, channels, k) {
  return mapped(tile, side, channels, (y, x) => {
    for (let n = 0; n < k % 4; n++) [y, x] = [x, side - 1 - y];
    return k >= 4 ? [y, side - 1 - x] : [y, x];
  });
}

// Undoes `turn`.
export function turnBack(tile, side, channels, k) {
  return mapped(tile, side, channels, (y, x) => {
    if (k >= 4) x = side - 1 - x;
    for (let n = 0; n < k % 4; n++) [y, x] = [side - 1 - x, y];
    return [y, x];
  });
}

function mapped(tile, side, channels, source) {
  const result = new tile.constructor(tile.length);
  let next = 0;
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const [sy, sx] = source(y, x);
      const from = (sy * side + sx) * channels;
      for (let c = 0; c < channels; c++) result[next++] = tile[from + c];
    }
  }
  return result;
}
