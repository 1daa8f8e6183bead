// The worker that computes, so that the page stays awake. It fetches nothing: the page hands it all it needs.
//
// In: {type: "start", runtime, model, bytes}, then any number of {type: "run", picture, options}.
// Out: {type: "started"}, {type: "progress", done, total}, {type: "result", result}, {type: "error", message}.

import { runDetector } from "./detector.js";
import { loadNetwork, startRuntime } from "./runtime.js";
import { checkNetwork } from "./selfcheck.js";
import { runUnet } from "./unet.js";

let model;
let network;

self.onmessage = async ({ data }) => {
  try {
    if (data.type === "start") {
      model = data.model;
      await startRuntime(data.runtime);
      network = await loadNetwork(data.bytes, data.runtime.threads);
      await checkNetwork(network, model);
      self.postMessage({ type: "started" });
    } else {
      const onProgress = (done, total) => self.postMessage({ type: "progress", done, total });
      const run = model.kind === "unet" ? runUnet : runDetector;
      const result = await run(data.picture, network, model, data.options, onProgress);
      const buffers = Object.values(result)
        .map((value) => value.buffer)
        .filter((buffer) => buffer instanceof ArrayBuffer);
      self.postMessage({ type: "result", result }, buffers);
    }
  } catch (error) {
    self.postMessage({ type: "error", message: error?.message ?? String(error) });
  }
};
