// The page: an image in, its objects drawn over it.

import { readAsset, readJson } from "./assets.js";
import { Engine, Stopped } from "./engine.js";
import { PictureError, readPicture } from "./picture.js";
import { resultOf } from "./results.js";

const element = (id) => document.getElementById(id);
const percent = (value) => `${Math.round(100 * value)} %`;
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

let engine; // of the model that is chosen
let picture; // the one that was read last
let result; // of results.js, shown
let task = 0; // number of the newest; what older ones still say is not heard

async function begin() {
  let models;
  try {
    models = await readJson("models.json");
  } catch (error) {
    return showError(error.message);
  }
  for (const { name } of models) element("model").append(new Option(name, name));
  const choose = () => {
    stop();
    chooseModel(models.find(({ name }) => name === element("model").value));
    if (picture) segment();
  };
  element("model").onchange = choose;
  element("versions").onchange = () => picture && segment();
  chooseModel(models[0]);
  listen();
}

function chooseModel(model) {
  engine?.stop(); // and its memory is free
  engine = new Engine(model);
  element("about").textContent = [model.summary, model.license && `Licence: ${model.license}.`]
    .filter(Boolean)
    .join(" ");
  const versions = model.kind === "unet" && model.versions > 1 ? [1, model.versions] : [];
  element("versions").replaceChildren(
    ...versions.map((n) => new Option(n === 1 ? "One, fast" : `Mean of ${n} turned versions, best`, n)),
  );
  element("versions-field").hidden = versions.length === 0;
  element("example").hidden = !model.example;
  element("credit").textContent = model.example ? `Example: ${model.example.credit}` : "";
  element("threshold").value = model.threshold;
  element("threshold-name").textContent = model.kind === "unet" ? "Threshold" : "Least score";
  element("probability-view").hidden = model.kind !== "unet";
  if (model.kind !== "unet" && view() === "probability")
    document.querySelector("[name=view][value=objects]").checked = true;
  const classes = model.kind === "unet" && model.classes.length > 2 ? model.classes : [];
  element("class").replaceChildren(...classes.map((name, k) => new Option(name, k)));
  element("class").value = model.object_class;
  element("class-field").hidden = classes.length === 0;
  element("result").hidden = true;
}

function listen() {
  element("file").onclick = () => (element("file").value = ""); // so that the same file can be chosen again
  element("file").onchange = () => element("file").files.length && open(element("file").files[0]);
  element("example").onclick = () => {
    const { file } = engine.model.example;
    open(readAsset(file).then((bytes) => new File([bytes], file, { type: "image/png" })));
  };
  element("stop").onclick = stop;
  document.addEventListener(
    "paste",
    (event) => event.clipboardData.files.length && open(event.clipboardData.files[0]),
  );
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
    else showError("What was dropped is not a file. Drop an image file, or choose one.");
  });
  for (const id of ["threshold", "opacity", "class"]) element(id).addEventListener("input", drawSoon);
  for (const choice of document.querySelectorAll("[name=view]")) choice.addEventListener("change", drawSoon);
  element("save-picture").onclick = () =>
    element("canvas").toBlob((blob) => save(blob, `${stem()}_${engine.model.name}.png`));
  element("save-numbers").onclick = () => {
    const { blob, ending } = result.numbers(choices());
    save(blob, `${stem()}_${engine.model.name}.${ending}`);
  };
}

// file: a File, or a promise of one.
async function open(file) {
  stop();
  element("error").hidden = true;
  element("result").hidden = true;
  element("status").textContent = "";
  picture = null;
  const own = ++task;
  try {
    const read = await readPicture(await file);
    if (own !== task) return;
    picture = read;
  } catch (error) {
    if (own === task)
      showError(error instanceof PictureError ? error.message : `The image could not be read: ${error.message}`);
    return;
  }
  await segment();
}

async function segment() {
  stop();
  const own = ++task;
  const started = performance.now();
  const { name, width, height, rgba } = picture;
  element("error").hidden = true;
  showProgress("Loading the model …");
  try {
    const options = { versions: Number(element("versions").value) || 1 };
    const numbers = await engine.run(
      { width, height, rgba },
      options,
      (state) => own === task && report(state, started),
    );
    if (own !== task) return;
    result = resultOf(engine.model, picture, numbers);
    element("progress").hidden = true;
    element("status").textContent = `${name}, ${width} × ${height} pixels: done in ${duration(started)}.`;
    element("result").hidden = false;
    draw();
  } catch (error) {
    if (own !== task || error instanceof Stopped) return;
    showError(`${name} could not be segmented. ${error.message}`);
  }
}

let computing; // when the first pass began

function report({ loading, done, total }, started) {
  if (loading) {
    const amount = total ? `${megabytes(done)} of ${megabytes(total)} MB` : `${megabytes(done)} MB`;
    showProgress(done === total ? "Starting the model and checking its numbers …" : `Loading the model: ${amount}`, done, total);
    return;
  }
  if (done === 0) computing = performance.now();
  const left =
    done > 0 && done < total
      ? `, about ${Math.ceil((((performance.now() - computing) / done) * (total - done)) / 1000)} s left`
      : "";
  // A single pass has no progress to show: the bar runs.
  showProgress(
    total === 1 ? "Segmenting …" : `Segmenting: ${done} of ${total} passes${left}`,
    done,
    total === 1 ? 0 : total,
  );
}

function showProgress(text, done = 0, total = 0) {
  element("status").textContent = text;
  element("progress").hidden = false;
  const bar = element("bar");
  if (total) Object.assign(bar, { max: total, value: done });
  else bar.removeAttribute("value");
}

function showError(text) {
  element("progress").hidden = true;
  element("status").textContent = "";
  element("error").textContent = text;
  element("error").hidden = false;
}

// Ends what is under way, if anything is.
function stop() {
  if (element("progress").hidden) return;
  task++;
  engine.stop();
  element("progress").hidden = true;
  element("status").textContent = "Stopped.";
}

function view() {
  return document.querySelector("[name=view]:checked").value;
}

function choices() {
  return {
    view: view(),
    threshold: Number(element("threshold").value),
    opacity: Number(element("opacity").value),
    objectClass: Number(element("class").value || engine.model.object_class),
  };
}

let waiting = false;

function drawSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

function draw() {
  const chosen = choices();
  element("threshold-value").textContent = chosen.threshold.toFixed(2);
  element("opacity-value").textContent = percent(chosen.opacity);
  if (!result || element("result").hidden) return;
  const canvas = element("canvas");
  const summary = result.draw(canvas, chosen);
  element("summary").textContent = summary;
  canvas.setAttribute("aria-label", `${picture.name} with what the model found: ${summary}`);
}

function duration(started) {
  const seconds = (performance.now() - started) / 1000;
  return seconds < 10 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}

function stem() {
  return picture.name.replace(/\.[^.]+$/, "");
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

begin();
