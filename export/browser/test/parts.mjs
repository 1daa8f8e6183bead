// Calls functions of src/ for tests: reads [[module, function, arguments], …] as JSON from standard input and writes
// their results, or {"error": message}. Typed arrays are {"type": name, "base64": bytes} both ways; {"constructor":
// name} is their type itself.

import { text } from "node:stream/consumers";

const calls = JSON.parse(await text(process.stdin), (_, value) => {
  if (typeof value?.constructor === "string") return globalThis[value.constructor];
  if (typeof value?.base64 !== "string") return value;
  const bytes = Uint8Array.from(Buffer.from(value.base64, "base64")); // aligned, and no more than these bytes
  return value.type === "ArrayBuffer" ? bytes.buffer : new globalThis[value.type](bytes.buffer);
});
const results = [];
for (const [module, name, args] of calls) {
  const functions = await import(`../src/${module}.js`);
  try {
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
  if (value === null || typeof value !== "object") return value;
  const entries = await Promise.all(Object.entries(value).map(async ([key, inner]) => [key, await plain(inner)]));
  return Object.fromEntries(entries);
}
