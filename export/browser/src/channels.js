// A picture's colours as a network wants them.

const LUMA = [0.299, 0.587, 0.114]; // grey of R, G, B: ITU-R BT.601

// rgba: Uint8ClampedArray. Returns [pixels * channels], channels 1 or 3, of the given typed array.
export function channelsOf(rgba, channels, Type) {
  const count = rgba.length / 4;
  const pixels = new Type(count * channels);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 3) {
      pixels.set([r, g, b], 3 * i);
    } else {
      const grey = r === g && g === b ? r : LUMA[0] * r + LUMA[1] * g + LUMA[2] * b;
      pixels[i] = Type === Uint8Array ? Math.round(grey) : grey;
    }
  }
  return pixels;
}

export function isConstant(pixels) {
  return pixels.every((value) => value === pixels[0]);
}
