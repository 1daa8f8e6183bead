// A U-Net over an image of any size, tile by tile: what keras_seg.segment gives.

import { channelsOf, isConstant } from "./channels.js";
import { cut, spans, turn, turnBack } from "./tiles.js";

// picture: {width, height, rgba}; network: of runtime.js; model: an entry of models.json; versions: symmetries of the
// square to average, from 1 to 8; onProgress(done, total). Returns {probabilities: Float32Array [H * W * K]}.
export async function runUnet(picture, network, model, { versions = 1 }, onProgress) {
  const { width, height } = picture;
  const { height: side, width: across, channels, Type } = network.input;
  if (versions > 1 && side !== across) throw new Error("Turned versions need a model with square tiles.");
  const pixels = channelsOf(picture.rgba, channels, Type);
  if (isConstant(pixels)) throw new Error("Every pixel of this image is alike: there is nothing to see in it.");

  const classes = model.classes.length;
  const [tileHeight, tileWidth] = [side - 2 * model.border, across - 2 * model.border];
  const tiles = spans(height, tileHeight, model.multiple).flatMap((rows) =>
    spans(width, tileWidth, model.multiple).map((columns) => ({ rows, columns })),
  );
  const probabilities = new Float32Array(width * height * classes);
  const total = tiles.length * versions;
  let done = 0;
  onProgress(done, total);
  for (const { rows, columns } of tiles) {
    const input = cut(pixels, picture, rows[0] - model.border, columns[0] - model.border, side, across, channels);
    let sum;
    let shape;
    for (let k = 0; k < versions; k++) {
      const outputs = await network.run(versions > 1 ? turn(input, side, channels, k) : input);
      shape = outputs.probabilities.shape;
      let values = outputs.probabilities.values;
      if (versions > 1) values = turnBack(values, shape[1], classes, k);
      sum = sum ? sum.map((value, i) => value + values[i]) : values;
      onProgress(++done, total);
    }
    join(probabilities, width, sum, shape, { rows, columns }, [tileHeight, tileWidth], classes, versions);
  }
  return { probabilities };
}

// Copies the tile's own pixels: the output may have some around them, as many on each side.
function join(probabilities, width, sum, shape, { rows, columns }, tile, classes, versions) {
  const [top, left] = [(shape[1] - tile[0]) / 2, (shape[2] - tile[1]) / 2];
  for (let y = rows[0]; y < rows[1]; y++) {
    const from = ((top + y - rows[0]) * shape[2] + left) * classes;
    const to = (y * width + columns[0]) * classes;
    const count = (columns[1] - columns[0]) * classes;
    for (let i = 0; i < count; i++) probabilities[to + i] = sum[from + i] / versions;
  }
}
