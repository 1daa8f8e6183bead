// Arrays as files that numpy.load reads (NumPy's format 1.0).

const TYPES = { Float32Array: "<f4", Int32Array: "<i4", Uint8Array: "|u1" };

export function npy(values, shape) {
  const type = TYPES[values.constructor.name];
  const text = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const header = text.padEnd(Math.ceil((10 + text.length + 1) / 64) * 64 - 11) + "\n";
  const head = new Uint8Array(10 + header.length);
  head.set([0x93, ..."NUMPY"].map((c) => (typeof c === "string" ? c.charCodeAt(0) : c)));
  head.set([1, 0, header.length & 255, header.length >> 8], 6);
  head.set(new TextEncoder().encode(header), 10);
  return new Blob([head, values], { type: "application/octet-stream" });
}
