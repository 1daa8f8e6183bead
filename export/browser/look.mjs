// Opens a built page in a headless Chromium as a person would, and saves the numbers that it finds in an image:
// `node look.mjs PAGE MODEL IMAGE OUTPUT CHROMIUM`, which `keras-seg export --format browser --check` calls. PAGE is a folder
// or an .html file, MODEL a name that the page offers.

import { pathToFileURL } from "node:url";

import { chromium } from "playwright-core";

import { serve } from "./serve.mjs";

const LONGEST = 600_000; // ms
const LEAST_SCORE = "0.05"; // of the objects that are saved: the slider's lowest

const [page, model, image, output, executablePath] = process.argv.slice(2);
const server = page.endsWith(".html") ? null : await serve(page);
// As root Chromium has no sandbox.
const args = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
const browser = await chromium.launch({ executablePath, args });
try {
  const view = await browser.newPage();
  view.setDefaultTimeout(LONGEST);
  await view.goto(server ? `http://127.0.0.1:${server.address().port}/` : pathToFileURL(page).href);
  await view.waitForSelector(`#model option[value="${model}"]`, { state: "attached" });
  await view.selectOption("#model", model);
  await view.setInputFiles("#file", image);
  await view.waitForSelector("#result:not([hidden]), #error:not([hidden])");
  if (await view.isVisible("#error")) throw new Error(await view.textContent("#error"));
  if (output.endsWith(".json")) await view.fill("#threshold", LEAST_SCORE);
  const [download] = await Promise.all([view.waitForEvent("download"), view.click("#save-numbers")]);
  await download.saveAs(output);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await browser.close();
  server?.close();
}
