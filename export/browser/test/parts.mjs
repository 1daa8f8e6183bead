// Calls functions of src/ for tests: reads [[module, function, arguments], …] as JSON from standard input and writes
// their results, or {"error": message}. Typed arrays are {"type": name, "base64": bytes} both ways; {"constructor":
// name} is their type itself; {"stand_in": name, …} is one of those below, and module "test" has the functions below.

import { text } from "node:stream/consumers";

globalThis.ImageData = class {
  constructor(data, width, height) {
    Object.assign(this, { data, width, height });
  }
};

const STAND_INS = {
  // For onProgress.
  nothing: () => () => {},
  // A network that sees each pixel by itself: the second class's probability is the first channel's share of 255.
  pixelwise: ({ height, width, channels }) => ({
    input: { height, width, channels, Type: Uint8Array },
    run: async (values) => ({
      probabilities: {
        values: Float32Array.from({ length: 2 * height * width }, (_, i) => {
          const share = values[Math.floor(i / 2) * channels] / 255;
          return i % 2 ? share : 1 - share;
        }),
      },
    }),
  }),
  // A network that has its answers ready, [{name: {values, shape}}, …], one a pass and the last one from then on.
  answering: ({ height, width, answers }) => {
    let pass = 0;
    return {
      input: { height, width, channels: 3, Type: Uint8Array },
      run: async () => answers[Math.min(pass++, answers.length - 1)],
    };
  },
};

const OWN = {
  // What results.js draws, tells and saves, on a canvas that keeps its pixels and counts boxes.
  async shown(model, picture, numbers, choices) {
    const { resultOf } = await import("../src/results.js");
    const canvas = { boxes: 0, texts: [] };
    const context = {
      putImageData: ({ data }) => (canvas.pixels = data),
      measureText: () => ({ width: 1 }),
      strokeRect: () => canvas.boxes++,
      fillRect: () => {},
      fillText: (text) => canvas.texts.push(text),
    };
    canvas.getContext = () => context;
    const result = resultOf(model, picture, numbers);
    const summary = result.draw(canvas, choices);
    const { blob, ending } = result.numbers(choices);
    const { width, height, pixels, boxes, texts } = canvas;
    return { summary, width, height, pixels, boxes, texts, ending, saved: blob };
  },
};

const calls = JSON.parse(await text(process.stdin), (_, value) => {
  if (typeof value?.constructor === "string") return globalThis[value.constructor];
  if (typeof value?.stand_in === "string") return STAND_INS[value.stand_in](value);
  if (typeof value?.base64 !== "string") return value;
  const bytes = Uint8Array.from(Buffer.from(value.base64, "base64")); // aligned, and no more than these bytes
  return value.type === "ArrayBuffer" ? bytes.buffer : new globalThis[value.type](bytes.buffer);
});
const results = [];
for (const [module, name, args] of calls) {
  try {
    const functions = module === "test" ? OWN : await import(`../src/${module}.js`);
    results.push(await plain(await functions[name](...args)));
  } catch (error) {
    results.push({ error: error.message });
  }
}
process.stdout.write(JSON.stringify(results));

async function plain(value) {
  if (value instanceof Blob) return plain(new Uint8Array(await value.arrayBuffer()));
  if (ArrayBuffer.isView(value)) {
    const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    return { type: value.constructor.name, base64: bytes.toString("base64") };
  }
  if (Array.isArray(value)) return Promise.all(value.map(plain));
  if (value === undefined || value === null || typeof value !== "object") return value ?? null;
  const entries = await Promise.all(Object.entries(value).map(async ([key, inner]) => [key, await plain(inner)]));
  return Object.fromEntries(entries);
}
