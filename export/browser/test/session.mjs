// A page in a headless Chromium, for tests: `node session.mjs CHROMIUM`. Reads commands from standard input, one a
// line, [name, arguments …] as JSON; answers each with a line {"value": …} or {"error": message}. Commands are those
// below, or methods of Playwright's page.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

import { serve } from "../serve.mjs";

const TIMEOUT = 120_000; // ms

// As root, which continuous integration often is, Chromium has no sandbox.
const browser = await chromium.launch({
  executablePath: process.argv[2],
  args: process.getuid() ? [] : ["--no-sandbox"],
});
const servers = [];
let page;
let noticed;

const commands = {
  // Gives out a folder, with headers that isolate its pages or without. Returns the address.
  async serve(folder, isolated) {
    const server = await serve(folder, 0, isolated ? undefined : {});
    servers.push(server);
    return `http://127.0.0.1:${server.address().port}/`;
  },
  // A fresh page, once a selector is there; options of Playwright's newContext.
  async visit(address, options = {}, ready = "#model option") {
    await page?.context().close();
    page = await (await browser.newContext(options)).newPage();
    page.setDefaultTimeout(TIMEOUT);
    noticed = { requests: [], errors: [] };
    page.on("request", (request) => noticed.requests.push(request.url()));
    page.on("pageerror", (error) => noticed.errors.push(error.message));
    page.on("console", (message) => message.type() === "error" && noticed.errors.push(message.text()));
    await page.goto(address);
    await page.waitForSelector(ready, { state: "attached" });
  },
  // Addresses that the page asked for, and errors it printed.
  noticed: () => noticed,
  // Runs code in the page and returns its value.
  evaluate: (code) => page.evaluate(code),
  // Waits until the code's value is true; unlike Playwright's own waiting, not in the page, whose policy forbids to
  // make code.
  async until(code) {
    const end = Date.now() + TIMEOUT;
    while (!(await page.evaluate(code))) {
      if (Date.now() > end)
        throw new Error(`waited in vain for ${code}; the page says: ${await page.innerText("main")}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  },
  // Waits for a result or an error.
  finished: () => commands.until('["result", "error"].some((id) => !document.getElementById(id).hidden)'),
  keyboardPress: (key) => page.keyboard.press(key),
  async download(selector, path) {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click(selector)]);
    await download.saveAs(path);
    return download.suggestedFilename();
  },
  // Lets a file fall on the page, or pastes it.
  async bring(event, path, name) {
    const base64 = readFileSync(path).toString("base64");
    await page.evaluate(
      ({ event, base64, name }) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], name));
        const Type = event === "paste" ? ClipboardEvent : DragEvent;
        const field = event === "paste" ? "clipboardData" : "dataTransfer";
        document.body.dispatchEvent(new Type(event, { [field]: transfer, bubbles: true, cancelable: true }));
      },
      { event, base64, name },
    );
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...args] = JSON.parse(line);
  let answer;
  try {
    answer = { value: await (commands[name]?.(...args) ?? page[name](...args)) };
  } catch (error) {
    answer = { error: `${name}: ${error.message}` };
  }
  if (Buffer.isBuffer(answer.value)) answer.value = null; // a screenshot, which is in its file
  console.log(JSON.stringify(answer, (_, value) => value ?? null));
}
await browser.close();
servers.forEach((server) => server.close());
