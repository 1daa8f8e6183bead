// How an image is cut into tiles of one size, continued beyond its borders by mirroring, and turned: the arithmetic of
// keras_seg/overlap_tile.py, so that the joined result is that of the whole image.

// One tile start and stop a tile along an axis of `length` pixels. Tiles start at multiples of `multiple`, where pooling
// has the phase that it has in the whole image; `tile` is the side of an output tile. The last may reach beyond the image.
export function spans(length, tile, multiple) {
  const step = Math.floor(tile / multiple) * multiple;
  const overlap = tile - step;
  const count = Math.max(1, Math.ceil((length - overlap) / step));
  return Array.from({ length: count }, (_, k) => [k * step, k === count - 1 ? length : (k + 1) * step]);
}

// Position on an axis of `length` pixels that is continued by mirroring, as often as it takes; border pixels are not repeated.
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

// The k-th symmetry of a square tile [side, side, channels]: k turns of 90 degrees counter-clockwise; from 4 on of its
// mirror image (left to right).
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
