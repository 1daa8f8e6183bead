// Files as pixels: {name, width, height, rgba: Uint8ClampedArray}.

import { decodeTiff, isTiff } from "./tiff.js";

// Larger canvases are refused by phones' browsers.
export const MOST_PIXELS = 2 ** 24;

// What is wrong with a file, in words for the person who chose it.
export class PictureError extends Error {}

export async function readPicture(file) {
  const name = file.name || "The image";
  if (file.size === 0) throw new PictureError(`${name} is empty. Choose another file.`);
  if (await isTiff(file)) {
    try {
      return checked({ name, ...decodeTiff(await file.arrayBuffer()) });
    } catch (error) {
      if (error instanceof PictureError) throw error;
      throw new PictureError(`${name}: ${error.message}. Save it as PNG and try again.`);
    }
  }
  // No colour profile, as in Python; files that say they are turned are turned upright.
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, options);
  } catch {
    throw new PictureError(
      `${name} is not an image that this browser can open: it is damaged or of another kind. Choose a PNG, JPEG, ` +
        "WebP or TIFF file.",
    );
  }
  try {
    const { width, height } = checked({ name, width: bitmap.width, height: bitmap.height });
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    return { name, width, height, rgba: context.getImageData(0, 0, width, height).data };
  } finally {
    bitmap.close();
  }
}

function checked(picture) {
  const { name, width, height } = picture;
  if (width * height > MOST_PIXELS) {
    throw new PictureError(
      `${name} has ${width} × ${height} pixels, ${((width * height) / 1e6).toFixed(1)} million; this page takes up ` +
        `to ${(MOST_PIXELS / 1e6).toFixed(1)} million. Crop it or make it smaller.`,
    );
  }
  return picture;
}
