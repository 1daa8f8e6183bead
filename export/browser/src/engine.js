// The page's side of the worker: one model, loaded once, and one image at a time.

import { supportsFeature } from "@litertjs/core";

import { readAsset } from "./assets.js";

const MOST_THREADS = 8;

export class Engine {
  #model;
  #worker = null;
  #loading = null;
  #reject = null;

  // model: an entry of models.json.
  constructor(model) {
    this.#model = model;
  }

  get model() {
    return this.#model;
  }

  // onProgress({loading: true, done, total}) in bytes while it loads, and ({loading: false, done, total}) in passes
  // of the network. Returns what unet.js or detector.js does. Loads what is not loaded yet.
  async run(picture, options, onProgress) {
    if (!this.#worker) await this.#start((done, total) => onProgress({ loading: true, done, total }));
    return this.#ask({ type: "run", picture, options }, (done, total) => onProgress({ loading: false, done, total }));
  }

  // Ends what is under way, whose promise is rejected with `reason`; the next run loads again, from the browser's
  // cache.
  stop(reason = new Stopped()) {
    this.#loading?.abort(reason);
    this.#worker?.terminate();
    this.#reject?.(reason);
    this.#worker = this.#loading = this.#reject = null;
  }

  async #start(onProgress) {
    const loading = (this.#loading = new AbortController());
    const variant = await variantOfRuntime();
    const names = [this.#model.file, `${variant.name}.wasm`, `${variant.name}.js`, "worker.js"];
    const [bytes, wasm, glue, script] = await readAll(names, onProgress, loading.signal);
    loading.signal.throwIfAborted();
    this.#worker = new Worker(scriptUrl(script));
    this.#worker.onerror = (event) => this.stop(new Error(`The worker failed: ${event.message}`));
    const runtime = { glue, wasm, threads: variant.threads };
    try {
      await this.#ask({ type: "start", runtime, model: this.#model, bytes });
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  #ask(message, onProgress = () => {}) {
    return new Promise((resolve, reject) => {
      this.#reject = reject;
      this.#worker.onmessage = ({ data }) => {
        if (data.type === "progress") return onProgress(data.done, data.total);
        this.#reject = null;
        if (data.type === "error") reject(new Error(data.message));
        else resolve(data.result);
      };
      this.#worker.postMessage(message);
    });
  }
}

// The person stopped it: nothing to report.
export class Stopped extends Error {}

// The files' bytes, and their progress as one.
function readAll(names, onProgress, signal) {
  const parts = names.map(() => ({ size: 0, total: 0 }));
  return Promise.all(
    names.map((name, k) =>
      readAsset(
        name,
        (size, total) => {
          parts[k] = { size, total };
          const known = parts.every((part) => part.total > 0);
          const sum = (field) => parts.reduce((all, part) => all + part[field], 0);
          onProgress(sum("size"), known ? sum("total") : 0);
        },
        signal,
      ),
    ),
  );
}

// The fastest of LiteRT's builds that this browser runs; threads need a page that its server isolates (README.md).
async function variantOfRuntime() {
  const names = document.documentElement.dataset.runtimes.split(" ");
  const relaxed = await supportsFeature("relaxedSimd");
  if (relaxed && self.crossOriginIsolated && names.includes("litert_wasm_threaded_internal")) {
    const threads = Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS);
    return { name: "litert_wasm_threaded_internal", threads };
  }
  if (relaxed && names.includes("litert_wasm_internal")) return { name: "litert_wasm_internal", threads: 0 };
  return { name: "litert_wasm_compat_internal", threads: 0 };
}

// Workers and their scripts come from the page itself: they are under its content security policy, which a worker
// fetched from a server would not be, and they work in a page opened as a file.
function scriptUrl(bytes) {
  return URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
}
