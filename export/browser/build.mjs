// Builds the page: `node build.mjs MODELS OUTPUT`, which `keras-seg export --format browser` calls.
//
// MODELS is a folder with models.json and the files that it names. OUTPUT is a folder for the page, LiteRT's runtime
// from node_modules and the models; or, where it ends in .html, one file with everything inside, which opens without a
// server.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { buildSync } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const [models, output] = process.argv.slice(2);
const standalone = output?.endsWith(".html");
const runtime = join(here, "node_modules", "@litertjs", "core");

const POLICY = {
  "default-src": "'none'",
  "script-src": standalone ? "'unsafe-inline' 'wasm-unsafe-eval' blob:" : "'self' 'wasm-unsafe-eval' blob:",
  "worker-src": "blob:",
  "connect-src": standalone ? "'none'" : "'self'",
  "img-src": "blob: data:",
  "style-src": standalone ? "'unsafe-inline'" : "'self'",
};

if (!output) fail("give the folder of the models and what to write: node build.mjs MODELS OUTPUT");
if (!existsSync(join(models, "models.json"))) fail(`${models} holds no models.json`);

const bundle = (name) =>
  buildSync({
    entryPoints: [join(here, "src", name)],
    bundle: true,
    minify: true,
    write: false,
    format: "iife",
    target: "es2022",
    legalComments: "inline",
    logLevel: "warning",
  }).outputFiles[0].text;

const runtimes = standalone
  ? ["litert_wasm_compat_internal"]
  : ["litert_wasm_compat_internal", "litert_wasm_internal", "litert_wasm_threaded_internal"];
const entries = JSON.parse(readFileSync(join(models, "models.json")));
const assets = {
  "worker.js": bundle("worker.js"),
  "models.json": readFileSync(join(models, "models.json")),
};
for (const name of runtimes.flatMap((runtime) => [`${runtime}.js`, `${runtime}.wasm`])) {
  assets[name] = readFileSync(join(runtime, "wasm", name));
}
for (const name of entries.flatMap(({ file, example }) => [file, example?.file]).filter(Boolean)) {
  assets[name] = readFileSync(join(models, name));
}

const page = bundle("main.js");
const style = readFileSync(join(here, "style.css"), "utf8");
const fields = {
  policy: Object.entries(POLICY)
    .map((pair) => pair.join(" "))
    .join("; "),
  style: standalone ? `<style>${style}</style>` : '<link rel="stylesheet" href="style.css" />',
  scripts: standalone ? inside(assets) + inline(page) : '<script src="main.js" defer></script>',
};
const html = readFileSync(join(here, "index.html"), "utf8")
  .replace("<html ", `<html data-runtimes="${runtimes.join(" ")}" `)
  .replace(/\{\{(\w+)\}\}/g, (_, name) => fields[name]);

const files = standalone
  ? { [output]: html }
  : Object.fromEntries(
      Object.entries({ ...assets, "index.html": html, "main.js": page, "style.css": style }).map(([name, content]) => [
        join(output, name),
        content,
      ]),
    );
if (!standalone) mkdirSync(output, { recursive: true });
for (const [path, content] of Object.entries(files)) writeFileSync(path, content);

function inside(assets) {
  const tag = ([name, content]) =>
    `<script type="application/octet-stream" id="asset:${name}">${Buffer.from(content).toString("base64")}</script>\n`;
  return Object.entries(assets).map(tag).join("");
}

function inline(script) {
  return `<script>${script.replaceAll("</script", "<\\/script")}</script>`;
}

function fail(message) {
  console.error(`build: ${message}`);
  process.exit(1);
}
