// LiteRT for web: a model's bytes become a network that takes and gives typed arrays.

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

const TYPES = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array };

// glue: the runtime's script; wasm: its program, both ArrayBuffers; threads: 0 for a runtime without.
export async function startRuntime({ glue, wasm, threads }) {
  const script = new Blob([glue], { type: "text/javascript" });
  // The runtime's own loader looks here for what it need not fetch, and for where to log.
  const printErr = (line) => /^(INFO|WARNING):/.test(line) || console.error(line);
  self.Module = { wasmBinary: wasm, printErr, ...(threads > 0 && { mainScriptUrlOrBlob: script }) };
  await loadLiteRt(`${URL.createObjectURL(script)}#.js`); // a name without that ending would be a folder
}

// Returns {input: {height, width, channels, Type}, run(values): {name: {values, shape}}}; values of the input's Type.
export async function loadNetwork(bytes, threads) {
  const model = await loadAndCompile(new Uint8Array(bytes), {
    accelerator: "wasm",
    ...(threads > 0 && { cpuOptions: { numThreads: threads } }),
  });
  const [input] = model.getInputDetails();
  const outputs = model.getOutputDetails();
  const [, height, width, channels] = input.shape;
  const run = async (values) => {
    const tensor = new Tensor(values, input.shape);
    let results = [];
    try {
      results = await model.run([tensor]);
      return Object.fromEntries(
        outputs.map(({ name }, k) => [
          name,
          { values: results[k].toTypedArray().slice(), shape: [...results[k].type.layout.dimensions] },
        ]),
      );
    } finally {
      for (const one of [tensor, ...results]) one.delete();
    }
  };
  return { input: { height, width, channels, Type: TYPES[input.dtype] }, run };
}
