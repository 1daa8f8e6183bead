// A U-Net over an image of any size: what keras_seg.segment gives.

import { channelsOf, isConstant } from "./channels.js";
import { cut, turn, turnBack, windows } from "./tiles.js";

// picture: {width, height, rgba}; network: of runtime.js; model: an entry of models.json; versions: symmetries of the
// square to average, from 1 to 8; onProgress(done, total). Returns {probabilities: Float32Array [H * W * K]}.
export async function runUnet(picture, network, model, { versions = 1 }, onProgress) {
  const { width, height } = picture;
  const { height: tall, width: wide, channels, Type } = network.input;
  const pixels = channelsOf(picture.rgba, channels, Type);
  if (isConstant(pixels)) throw new Error("Every pixel of this image is alike: there is nothing to see in it.");

  const classes = model.classes.length;
  const tiles = windows(height, tall, model.border, model.multiple).flatMap((rows) =>
    windows(width, wide, model.border, model.multiple).map((columns) => ({ rows, columns })),
  );
  const probabilities = new Float32Array(width * height * classes);
  const total = tiles.length * versions;
  let done = 0;
  onProgress(done, total);
  for (const { rows, columns } of tiles) {
    const input = cut(pixels, picture, rows.start, columns.start, tall, wide, channels);
    let sum;
    for (let k = 0; k < versions; k++) {
      const { values } = (await network.run(versions > 1 ? turn(input, tall, channels, k) : input)).probabilities;
      const upright = versions > 1 ? turnBack(values, tall, classes, k) : values;
      sum = sum ? sum.map((value, i) => value + upright[i]) : upright;
      onProgress(++done, total);
    }
    for (let y = rows.from; y < rows.to; y++) {
      const from = ((y - rows.start) * wide + columns.from - columns.start) * classes;
      const to = (y * width + columns.from) * classes;
      const count = (columns.to - columns.from) * classes;
      for (let i = 0; i < count; i++) probabilities[to + i] = sum[from + i] / versions;
    }
  }
  return { probabilities };
}
