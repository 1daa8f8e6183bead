// TIFF files, which browsers do not open and microscopes write: uncompressed or PackBits, grey or RGB, 8 or 16 bits,
// one image (of several the first). Tags and their numbers: TIFF 6.0 (Adobe, 1992), Part 1.

const TAGS = {
  256: "width",
  257: "height",
  258: "bits",
  259: "compression",
  262: "photometric",
  273: "offsets",
  277: "samples",
  278: "rows",
  279: "counts",
  284: "planar",
  339: "format",
};
const SIZES = { 1: 1, 3: 2, 4: 4 }; // bytes of a BYTE, SHORT, LONG
const [NO_COMPRESSION, PACK_BITS] = [1, 32773];
const [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB] = [0, 1, 2];

export async function isTiff(file) {
  const head = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  const magic = String.fromCharCode(...head);
  return magic === "II*\0" || magic === "MM\0*";
}

// Returns {width, height, rgba}; 16 bits become 8 by 255 / 65535, as in Python, rounded. Errors say what is not read.
export function decodeTiff(buffer) {
  const view = new DataView(buffer);
  const little = view.getUint8(0) === 0x49;
  const tags = readTags(view, little);
  const first = (name, otherwise) => tags[name]?.[0] ?? otherwise;
  const [width, height] = [first("width", 0), first("height", 0)];
  const [bits, samples] = [first("bits", 1), first("samples", 1)];
  const [compression, photometric] = [first("compression", NO_COMPRESSION), first("photometric", BLACK_IS_ZERO)];
  if (!width || !height || !tags.offsets) throw new Error("the TIFF file has no image");
  if (compression !== NO_COMPRESSION && compression !== PACK_BITS)
    throw new Error("this page reads no compressed TIFF");
  if ((bits !== 8 && bits !== 16) || first("format", 1) !== 1) {
    throw new Error("this page reads TIFF of 8 or 16 bits alone, whole numbers from 0");
  }
  if (![WHITE_IS_ZERO, BLACK_IS_ZERO, RGB].includes(photometric) || (photometric === RGB && samples < 3)) {
    throw new Error("this page reads grey and RGB TIFF alone");
  }
  if (samples > 1 && first("planar", 1) !== 1) throw new Error("this page reads no TIFF with its colours in planes");
  if (width * height * samples > 2 ** 28) throw new Error("the TIFF file is too large for this page");

  const data = strips(view, tags, compression, (width * height * samples * bits) / 8);
  const values = new DataView(data.buffer);
  const rgba = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      const at = i * samples + (photometric === RGB ? c : 0);
      const value = bits === 8 ? data[at] : (values.getUint16(2 * at, little) * 255) / 65535;
      rgba[4 * i + c] = photometric === WHITE_IS_ZERO ? 255 - value : value;
    }
  }
  return { width, height, rgba };
}

function readTags(view, little) {
  const tags = {};
  try {
    const start = view.getUint32(4, little);
    const count = view.getUint16(start, little);
    for (let entry = start + 2; entry < start + 2 + 12 * count; entry += 12) {
      const name = TAGS[view.getUint16(entry, little)];
      const size = SIZES[view.getUint16(entry + 2, little)];
      const length = view.getUint32(entry + 4, little);
      if (!name || !size) continue;
      const at = length * size > 4 ? view.getUint32(entry + 8, little) : entry + 8;
      if (at + length * size > view.byteLength) throw new RangeError();
      const read = { 1: "getUint8", 2: "getUint16", 4: "getUint32" }[size];
      tags[name] = Array.from({ length }, (_, k) => view[read](at + k * size, little));
    }
  } catch {
    throw new Error("the TIFF file is damaged");
  }
  return tags;
}

function strips(view, tags, compression, length) {
  const data = new Uint8Array(length);
  let next = 0;
  tags.offsets.forEach((offset, k) => {
    const bytes = tags.counts?.[k] ?? length - next;
    if (offset + bytes > view.byteLength) throw new Error("the TIFF file is cut off");
    const strip = new Uint8Array(view.buffer, offset, bytes);
    const plain = compression === PACK_BITS ? unpackBits(strip) : strip;
    data.set(plain.subarray(0, length - next), next);
    next = Math.min(length, next + plain.length);
  });
  if (next < length) throw new Error("the TIFF file is cut off");
  return data;
}

function unpackBits(packed) {
  const result = [];
  for (let i = 0; i < packed.length;) {
    const head = (packed[i++] << 24) >> 24;
    if (head >= 0) {
      for (let n = 0; n <= head; n++) result.push(packed[i++]);
    } else if (head !== -128) {
      for (let n = 0; n < 1 - head; n++) result.push(packed[i]);
      i++;
    }
  }
  return Uint8Array.from(result);
}
