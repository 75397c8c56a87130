// What the visits to both versions of Prefect's UI share: a browser, the report, and waiting.
//
// A script of visits is called as: node SCRIPT TASK OPTIONS-AS-JSON. The last line of output is a report as JSON.
import { mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox", // root in a container
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const WIDTH = 1400;

const [task, json] = process.argv.slice(2);
export const options = JSON.parse(json);
const hosts = new Set();

const context = await chromium.launchPersistentContext(mkdtempSync(join(options.work, "chromium-")), {
  executablePath: options.chromium,
  headless: true,
  args: FLAGS,
  viewport: { width: WIDTH, height: 1000 },
});
context.setDefaultTimeout(options.patience);
const kept = new Set();
context.on("request", (request) => {
  const { protocol, host } = new URL(request.url());
  if ((protocol.startsWith("http") || protocol.startsWith("ws")) && !kept.has(host)) hosts.add(host);
});
export const page = await context.newPage();

// Lets no page ask this host, and says nothing of it in the report.
export async function keepFrom(host) {
  kept.add(host);
  await context.route((url) => url.host === host, (route) => route.abort());
}

// Does the one of these tasks that was asked for, prints what it found, and closes the browser.
export async function report(tasks) {
  try {
    const answer = await tasks[task]();
    console.log(JSON.stringify({ answer, hosts: [...hosts] }));
  } catch (error) {
    await page.screenshot({ path: join(options.pictures, "failure.png") });
    throw error;
  } finally {
    await context.close();
  }
}

export async function visit(path) {
  await page.goto(options.pages + path);
}

export async function everything() {
  await rest();
  return page.locator("body").innerText();
}

// Presses a button, and tells what the server answers to what the page then sends there. As people do, it presses once
// more while SQLite is too busy.
export async function answered(path, button) {
  const end = Date.now() + options.patience;
  for (;;) {
    const sent = page.waitForResponse((response) => response.url().endsWith(path));
    await button.click();
    const answer = await sent;
    if (answer.ok()) return answer.json();
    if (answer.status() !== 503 || Date.now() > end) throw new Error(`${path}: ${answer.status()} ${await answer.text()}`);
  }
}

// Submits the form of a deployment: the run that comes of it.
export async function submitted() {
  const { id, parameters } = await answered("/create_flow_run", page.getByRole("button", { name: "Submit" }));
  return { run: id, parameters };
}

export async function picture(name, height, of = page) {
  await page.mouse.move(WIDTH - 4, 4); // away from what lights up under the pointer
  await page.setViewportSize({ width: WIDTH, height });
  writeFileSync(join(options.pictures, `${name}.png`), await rest(of));
}

// A screenshot, once the page has come to rest: graphs fly into place.
async function rest(of = page) {
  const end = Date.now() + options.patience;
  let before = await of.screenshot();
  for (let nSame = 0; nSame < 3; ) {
    if (Date.now() > end) throw new Error("the page does not come to rest");
    await page.waitForTimeout(300);
    const now = await of.screenshot();
    nSame = now.equals(before) ? nSame + 1 : 0;
    before = now;
  }
  return before;
}
