// One visit to the Prefect UI: node browser.mjs TASK OPTIONS-AS-JSON. The last line of output is a report as JSON.
//
// Selectors follow what people see (labels, button names) where the pages allow it, and Prefect's class names elsewhere.
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
const options = JSON.parse(json);
const hosts = new Set();

const context = await chromium.launchPersistentContext(mkdtempSync(join(options.work, "chromium-")), {
  executablePath: options.chromium,
  headless: true,
  args: FLAGS,
  viewport: { width: WIDTH, height: 1000 },
});
context.setDefaultTimeout(options.patience);
// Where the pages of V2 ask for the settings of their telemetry.
const TELEMETRY = "sr-client-cfg.amplitude.com";
await context.route((url) => url.host === TELEMETRY, (route) => route.abort());
context.on("request", (request) => {
  const { protocol, host } = new URL(request.url());
  if (host === TELEMETRY) return;
  if (protocol.startsWith("http") || protocol.startsWith("ws")) hosts.add(host);
});
const page = await context.newPage();
try {
  const answer = await { form, study, ranking, run, card, pause, resume, block, retry }[task]();
  console.log(JSON.stringify({ answer, hosts: [...hosts] }));
} catch (error) {
  await page.screenshot({ path: join(options.pictures, "failure.png") });
  throw error;
} finally {
  await context.close();
}

// Reads the form of a deployment, fills it in, and submits it.
async function form() {
  await visit(`/v2/deployments/deployment/${options.deployment}/run`);
  await page.getByRole("tab", { name: "Adam", exact: true }).click();
  await page.getByText("Schedule (Optional)").waitFor();
  const tabs = (await page.getByRole("tab").allInnerTexts()).filter((tab) => /^[A-Z]/.test(tab) && !["None", "TesseractEndpoint"].includes(tab));
  const text = await page.locator("main, body").first().innerText();
  const labels = [...text.matchAll(/^(.+) \(Optional\)$/gm)].map((match) => match[1]);
  await picture("ui-form", 1500);
  await page.getByLabel("Run Name").or(page.locator("input").first()).first().fill(options.name);
  await input("Max Steps").fill("8");
  await pick("run_key", "str", options.runKey);
  const answer = page.waitForResponse((response) => response.url().endsWith("/create_flow_run"));
  await page.getByRole("button", { name: "Submit" }).click();
  const created = await (await answer).json();
  return { labels, tabs, text, run: created.id, parameters: created.parameters };
}

// Fills in the form of a multi-start, and submits it.
async function study() {
  await visit(`/v2/deployments/deployment/${options.deployment}/run`);
  await page.getByText("starts (Optional)").waitFor();
  await page.locator("input").first().fill(options.name);
  await input("n_elements").fill("20");
  await input("N").fill("3");
  await input("Seed").fill("7");
  await input("Max Steps").fill("4");
  await pick("run_key", "str", options.runKey);
  await page.getByText("starts (Optional)").scrollIntoViewIfNeeded();
  await picture("ui-study-form", 1250);
  const answer = page.waitForResponse((response) => response.url().endsWith("/create_flow_run"));
  await page.getByRole("button", { name: "Submit" }).click();
  const created = await (await answer).json();
  return { run: created.id, parameters: created.parameters };
}

// The table of a study that is over.
async function ranking() {
  await visit(`/v2/artifacts/artifact/${options.artifact}`);
  await page.getByText("rank", { exact: true }).first().waitFor();
  await picture("ui-study", 700);
  return { text: await everything() };
}

// Presses Pause on the page of a run, and waits until it says why it waits.
async function pause() {
  await visit(`/v2/runs/flow-run/${options.run}`);
  await menu("Pause");
  await page.getByRole("dialog").getByRole("button", { name: "Pause Flow Run" }).click();
  await page.getByText("Paused").first().waitFor();
  return {};
}

// Fills in the form that Resume opens, and sends it.
async function resume() {
  await visit(`/v2/runs/flow-run/${options.run}`);
  await page.getByText("Paused").first().waitFor();
  await menu("Resume");
  const dialog = page.getByRole("dialog");
  await dialog.getByText("What to do now.").waitFor();
  await pick("Learning Rate", "float", options.learningRate, dialog);
  await pick("Max Steps", "int", options.maxSteps, dialog);
  const text = await dialog.innerText();
  await dialog.getByText("What to do now.").scrollIntoViewIfNeeded();
  await picture("ui-resume", 1000, dialog); // behind it the clock of the run goes on
  const answer = page.waitForResponse((response) => response.url().endsWith("/resume"));
  await dialog.getByRole("button", { name: "Resume" }).click();
  return { status: (await (await answer).json()).status, text };
}

// The page of an endpoint block.
async function block() {
  await visit(`/v2/blocks/block/${options.block}`);
  await page.getByText("Tesseract Endpoint").first().waitFor();
  const text = await everything();
  const broken = await page.locator("img[src]").evaluateAll((all) => all.filter((it) => it.naturalWidth === 0).length);
  return { text, broken };
}

// The page of a run: its state, and its cards.
async function run() {
  await visit(`/v2/runs/flow-run/${options.run}`);
  await page.getByText("NotConverged").first().waitFor();
  await picture("ui-run", 1000);
  const details = await everything();
  await page.getByRole("tab", { name: "Artifacts" }).click();
  await page.getByText("-progress").first().waitFor();
  await picture("ui-cards", 900);
  return { text: details, cards: await everything() };
}

// The page of a card with a picture.
async function card() {
  await visit(`/v2/artifacts/artifact/${options.artifact}`);
  const image = page.locator("img[src^='data:image']").first();
  await image.waitFor();
  const width = await image.evaluate((it) => it.decode().then(() => it.naturalWidth));
  if (options.what === "convergence") await picture("ui-artifacts", 1000);
  return { width, text: await everything() };
}

// Presses Retry on the page of a run that is over.
async function retry() {
  await visit(`/runs/flow-run/${options.run}`);
  await page.getByRole("button", { name: "Retry" }).first().click();
  const answer = page.waitForResponse((response) => response.url().endsWith("/set_state"));
  await page.getByRole("dialog").getByRole("button", { name: "Retry" }).click();
  return (await (await answer).json()).status;
}

async function visit(path) {
  await page.goto(options.pages + path);
}

async function everything() {
  await rest();
  return page.locator("body").innerText();
}

// The box of a field with this label: the nearest one that follows it.
function input(label) {
  return page.getByText(`${label} (Optional)`, { exact: true }).locator("xpath=following::*[self::input or self::textarea][1]");
}

// Chooses one of the kinds of a field, and fills in a text.
async function pick(label, kind, text, where = page) {
  const name = where.getByText(`${label} (Optional)`, { exact: true });
  await name.locator(`xpath=following::*[@role='tab' and normalize-space()='${kind}'][1]`).click();
  await name.locator("xpath=following::*[self::input or self::textarea][1]").fill(text);
}

// Opens the menu of a run's page, and chooses.
async function menu(name) {
  await page.getByRole("button", { name: "Open menu" }).first().click();
  await page.getByRole("menuitem", { name, exact: true }).click();
}

async function picture(name, height, of = page) {
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
