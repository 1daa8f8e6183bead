// The page's other files: beside it, fetched with their progress; or inside it, where it is one file.

// onProgress(bytes so far, bytes in all or 0); signal: an AbortSignal. Returns an ArrayBuffer.
export async function readAsset(name, onProgress = () => {}, signal = undefined) {
  const inside = document.getElementById(`asset:${name}`);
  if (inside) {
    const bytes = fromBase64(inside.textContent);
    onProgress(bytes.length, bytes.length);
    return bytes.buffer;
  }
  let response;
  try {
    response = await fetch(new URL(name, document.baseURI), { signal });
  } catch {
    signal?.throwIfAborted();
    if (location.protocol === "file:") {
      throw new Error("This page cannot load its model from a disk. Put it on a web server, or make it as one .html file.");
    }
    throw new Error(`${name} could not be loaded. Is the connection there?`);
  }
  if (!response.ok) throw new Error(`${name} could not be loaded: the server says ${response.status}.`);
  // With content encoding the length is that of what is sent, not of what arrives here.
  const total = response.headers.get("content-encoding") ? 0 : Number(response.headers.get("content-length"));
  const reader = response.body.getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    onProgress(size, total);
  }
  if (total && size !== total)
    throw new Error(`${name} was cut off after ${size} of ${total} bytes. Load the page again.`);
  return new Blob(parts).arrayBuffer();
}

export async function readJson(name) {
  return JSON.parse(new TextDecoder().decode(await readAsset(name)));
}

function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}
