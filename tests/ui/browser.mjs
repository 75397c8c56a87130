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
context.on("request", (request) => {
  const { protocol, host } = new URL(request.url());
  if (protocol.startsWith("http") || protocol.startsWith("ws")) hosts.add(host);
});
const page = await context.newPage();
try {
  const answer = await { form, run, artifacts, retry }[task]();
  console.log(JSON.stringify({ answer, hosts: [...hosts] }));
} catch (error) {
  await page.screenshot({ path: join(options.pictures, "failure.png") });
  throw error;
} finally {
  await context.close();
}

// Reads the form of a deployment, fills it in, and submits it.
async function form() {
  await visit(`/deployments/deployment/${options.deployment}`);
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.getByText("Custom run", { exact: true }).click();
  await page.locator(".schema-form-property").first().waitFor();
  const fields = await page.locator(".schema-form-property").evaluateAll(describeFields);
  await page.locator(".flow-run-name-input input").fill(options.name);
  await field("Max Steps").locator("input[type=number]").fill(String(options.maxSteps));
  const optimizers = await choose("Name", "adam");
  await choose("observe", options.observe);
  await page.getByText("Parameters", { exact: true }).click(); // takes the focus out of the field
  await page.locator(".flow-run-name-input").scrollIntoViewIfNeeded();
  await picture("ui-form", 1560);
  await field("run_key").getByRole("button", { name: "str", exact: true }).click();
  await field("run_key").locator("textarea").fill(options.runKey);
  const answer = page.waitForResponse((response) => response.url().endsWith("/create_flow_run"));
  await page.getByRole("button", { name: "Submit" }).click();
  const created = await (await answer).json();
  return { fields, optimizers, run: created.id, parameters: created.parameters };
}

// The page of a short run: the graph of its first calls, large enough to read, and its artifacts.
async function run() {
  await visit(`/runs/flow-run/${options.run}`);
  await layOut("Dependency grid");
  const artifacts = await openArtifacts();
  await rest();
  await zoomIn(9);
  await picture("ui-run", 1240);
  return { artifacts, greenShare: await greenShare() };
}

// The artifacts of a long run, and those with a picture opened.
async function artifacts() {
  await visit(`/runs/flow-run/${options.run}`);
  const artifacts = await openArtifacts();
  const widths = {};
  for (const { key, href } of artifacts.filter(({ kind }) => kind === "image")) {
    await visit(href);
    const image = page.locator("img[src^='data:image']");
    await image.waitFor();
    widths[key] = await image.evaluate((it) => it.decode().then(() => it.naturalWidth));
    if (key.endsWith("-convergence")) {
      const { y, height } = await image.boundingBox();
      await picture("ui-artifacts", Math.ceil(y + height) + 16); // below is the address of the image, which is the image
    }
  }
  return { artifacts, widths };
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

// The field with this label, and no other field inside.
function field(label) {
  const text = page.locator(".schema-form-property__label").filter({ hasText: new RegExp(`^${label}( \\(Optional\\))?$`) });
  return page.locator(".schema-form-property").filter({ has: text }).last();
}

// Selects a value in a menu, and returns all that it offers.
async function choose(label, value) {
  await field(label).locator(".p-select-button button").press("Space"); // a click this quick opens it and closes it again
  const menu = page.getByRole("option");
  await menu.first().waitFor();
  const offered = (await menu.allInnerTexts()).map((text) => text.trim());
  await menu.filter({ hasText: new RegExp(`^\\s*${value}\\s*$`) }).click();
  await menu.first().waitFor({ state: "hidden" });
  return offered;
}

// Chooses a layout of the graph, and waits for the graph: the canvas is there long before anything is on it.
async function layOut(name) {
  await page.locator(".run-graph canvas").waitFor();
  const gear = page.getByRole("button", { name: "Run Graph Options" });
  await gear.click();
  await page.getByText(name, { exact: true }).click();
  await gear.click();
  await page.getByText(name, { exact: true }).waitFor({ state: "hidden" });
  const end = Date.now() + options.patience;
  do {
    if (Date.now() > end) throw new Error("no bars of completed task runs appear in the graph");
    await page.getByTitle("Recenter graph").click();
    await rest();
  } while ((await greenShare()) < 0.005);
}

// How much of the graph is green, the colour of what is completed. It is drawn with WebGL, so there is nothing to read.
async function greenShare() {
  const clip = await page.locator(".run-graph canvas").boundingBox();
  const shot = (await page.screenshot({ clip })).toString("base64");
  return page.evaluate(async (data) => {
    const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${data}`)).blob());
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
    canvas.drawImage(image, 0, 0);
    const { data: rgba } = canvas.getImageData(0, 0, image.width, image.height);
    let nGreen = 0;
    for (let i = 0; i < rgba.length; i += 4) nGreen += rgba[i + 1] > 120 && rgba[i + 1] > 1.5 * Math.max(rgba[i], rgba[i + 2]);
    return nGreen / (image.width * image.height);
  }, shot);
}

async function openArtifacts() {
  await page.getByRole("tab", { name: "Artifacts" }).or(page.locator(".p-tabs").getByText("Artifacts")).first().click();
  const cards = page.locator("a[href*='/artifacts/artifact/']");
  await cards.nth(options.nArtifacts - 1).waitFor();
  return cards.evaluateAll((links) =>
    links.map((link) => ({
      href: link.getAttribute("href"),
      kind: link.querySelector(".artifact-card__subheader").textContent.trim(),
      key: link.querySelector(".artifact-card__title").textContent.trim(),
    })),
  );
}

// Turns the wheel over the middle of the graph's upper edge, so that it grows downwards and to both sides.
async function zoomIn(nTurns) {
  const { x, y, width } = await page.locator(".run-graph canvas").boundingBox();
  await page.mouse.move(x + width / 2, y + 8);
  for (let i = 0; i < nTurns; i++) {
    await page.mouse.wheel(0, -100);
    await rest();
  }
}

async function picture(name, height) {
  await page.mouse.move(WIDTH - 4, 4); // away from what lights up under the pointer
  await page.setViewportSize({ width: WIDTH, height });
  writeFileSync(join(options.pictures, `${name}.png`), await rest());
}

// A screenshot, once the page has come to rest: graphs fly into place.
async function rest() {
  const end = Date.now() + options.patience;
  let before = await page.screenshot();
  for (let nSame = 0; nSame < 3; ) {
    if (Date.now() > end) throw new Error("the page does not come to rest");
    await page.waitForTimeout(300);
    const now = await page.screenshot();
    nSame = now.equals(before) ? nSame + 1 : 0;
    before = now;
  }
  return before;
}

// In the page: label and kind of each field, those of groups included.
function describeFields(properties) {
  const kindOf = (property) => {
    const body = property.querySelector(":scope > .p-label__body");
    if (body.querySelector(".schema-form-property")) return "group";
    const choice = body.querySelector(":scope > .p-button-group");
    if (choice) return [...choice.querySelectorAll("button")].map((button) => button.innerText.trim()).join(" or ");
    if (body.querySelector(".p-code-input")) return "json";
    if (body.querySelector(".p-select")) return "menu";
    if (body.querySelector("input[type=number]")) return "number";
    if (body.querySelector("textarea.p-textarea__control")) return "text";
    return "unknown";
  };
  const labelOf = (property) =>
    property.querySelector(":scope > .p-label__header .schema-form-property__label").innerText.replace(" (Optional)", "");
  const nameOf = (property) => {
    const group = property.parentElement.closest(".schema-form-property");
    return (group ? `${nameOf(group)}.` : "") + labelOf(property);
  };
  return Object.fromEntries(properties.map((property) => [nameOf(property), kindOf(property)]));
}
