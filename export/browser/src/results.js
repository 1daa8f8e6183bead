// What a model found in an image: drawn on a canvas, told in a sentence, and saved as numbers.

import { components } from "./components.js";
import { pasteWindow, runLengths } from "./masks.js";
import { npy } from "./npy.js";
import { colour, labelsOfWindows, paintLabels, paintProbability } from "./overlay.js";

// numbers: of unet.js or detector.js. Returns {draw(canvas, choices): summary, numbers(choices): {blob, ending}};
// choices: {view: "objects", "probability" or "image", threshold, opacity, objectClass}.
export function resultOf(model, picture, numbers) {
  return model.kind === "unet" ? unetResult(model, picture, numbers) : detectorResult(model, picture, numbers);
}

function unetResult(model, picture, { probabilities }) {
  const { width, height, rgba } = picture;
  const classes = model.classes.length;
  const planes = new Map();
  const plane = (k) => {
    if (!planes.has(k))
      planes.set(
        k,
        Float32Array.from({ length: width * height }, (_, i) => probabilities[i * classes + k]),
      );
    return planes.get(k);
  };
  const draw = (canvas, { view, threshold, opacity, objectClass }) => {
    const probability = plane(objectClass);
    const { labels, count } = components(probability, width, height, threshold);
    const pixels =
      view === "image"
        ? rgba
        : view === "probability"
          ? paintProbability(probability)
          : paintLabels(rgba, width, height, labels, opacity);
    put(canvas, pixels, width, height);
    const share = labels.reduce((sum, label) => sum + (label > 0), 0) / labels.length;
    return `${counted(count, model.classes[objectClass])}, ${Math.round(100 * share)} % of the image`;
  };
  return { draw, numbers: () => ({ blob: npy(probabilities, [height, width, classes]), ending: "npy" }) };
}

function detectorResult(model, picture, found) {
  const { width, height, rgba } = picture;
  const windows = new Map(); // a mask is pasted when it is first seen
  const windowOf = (k) => {
    if (!windows.has(k)) {
      const side = found.maskSide;
      const mask = found.masks?.subarray(k * side * side, (k + 1) * side * side);
      const box = found.boxes.subarray(4 * k, 4 * k + 4);
      windows.set(k, mask ? pasteWindow(mask, side, box, picture, model.convention) : null);
    }
    return windows.get(k);
  };
  const chosen = (threshold) => [...found.scores.keys()].filter((k) => found.scores[k] >= threshold);
  const draw = (canvas, { view, threshold, opacity }) => {
    const shown = chosen(threshold);
    const objects = view === "objects";
    const masked = objects && found.masks;
    put(
      canvas,
      masked ? paintLabels(rgba, width, height, labelsOfWindows(shown.map(windowOf), width, height), opacity) : rgba,
      width,
      height,
    );
    if (objects && (!masked || model.classes.length > 1)) drawBoxes(canvas, shown);
    return shown.length ? countedByClass(shown) : `Nothing with a score of ${threshold.toFixed(2)} or more`;
  };
  const drawBoxes = (canvas, shown) => {
    const context = canvas.getContext("2d");
    const line = Math.max(1, Math.round(Math.sqrt(width * height) / 320));
    context.lineWidth = line;
    context.font = `${Math.max(11, 5 * line)}px system-ui, sans-serif`;
    context.textBaseline = "top";
    for (const [n, k] of shown.entries()) {
      const [x1, y1, x2, y2] = found.boxes.subarray(4 * k, 4 * k + 4);
      const [r, g, b] = colour(n + 1);
      context.strokeStyle = context.fillStyle = `rgb(${r} ${g} ${b})`;
      context.strokeRect(x1, y1, x2 - x1, y2 - y1);
      if (model.classes.length < 2) continue;
      const text = ` ${model.classes[found.classes[k]]} ${found.scores[k].toFixed(2)} `;
      context.fillRect(x1, y1, context.measureText(text).width, 1.3 * Math.max(11, 5 * line));
      context.fillStyle = 0.3 * r + 0.59 * g + 0.11 * b > 128 ? "black" : "white";
      context.fillText(text, x1, y1 + line);
    }
  };
  const countedByClass = (shown) => {
    const counts = new Map();
    for (const k of shown) counts.set(found.classes[k], (counts.get(found.classes[k]) ?? 0) + 1);
    return [...counts].map(([k, count]) => counted(count, model.classes[k])).join(", ");
  };
  const numbers = ({ threshold }) => {
    const detections = chosen(threshold).map((k) => ({
      class: found.classes[k],
      name: model.classes[found.classes[k]],
      score: found.scores[k],
      box: [...found.boxes.subarray(4 * k, 4 * k + 4)],
      ...(found.masks && { segmentation: runLengths(windowOf(k), picture) }),
    }));
    const text = JSON.stringify({ model: model.name, image: picture.name, width, height, detections });
    return { blob: new Blob([text], { type: "application/json" }), ending: "json" };
  };
  return { draw, numbers };
}

function put(canvas, pixels, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels), width, height), 0, 0);
}

function counted(count, name) {
  return `${count.toLocaleString("en")} × ${name}`;
}
