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
//
// Each pass has a model of its own, compiled in a tenth of a second: LiteRT 2.5.2 and 2.5.3 give other numbers when a model
// whose sizes are known only as it runs, as a detector's are, runs a second time (2.0.0 does not).
export async function loadNetwork(bytes, threads) {
  const program = new Uint8Array(bytes);
  const options = { accelerator: "wasm", ...(threads > 0 && { cpuOptions: { numThreads: threads } }) };
  const first = await loadAndCompile(program, options);
  const [input] = first.getInputDetails();
  const names = first.getOutputDetails().map(({ name }) => name);
  first.delete();
  const [, height, width, channels] = input.shape;
  const run = async (values) => {
    const model = await loadAndCompile(program, options);
    const tensor = new Tensor(values, input.shape);
    let results = [];
    try {
      results = await model.run([tensor]);
      return Object.fromEntries(
        names.map((name, k) => [
          name,
          { values: results[k].toTypedArray().slice(), shape: [...results[k].type.layout.dimensions] },
        ]),
      );
    } finally {
      for (const one of [tensor, ...results, model]) one.delete();
    }
  };
  return { input: { height, width, channels, Type: TYPES[input.dtype] }, run };
}
