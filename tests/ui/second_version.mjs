// Visits to the second version of Prefect's UI, whose pages are below /v2; browser.mjs says how they are called.
//
// Selectors follow what people see (labels, button names) where the pages allow it, and Prefect's class names elsewhere.
import { answered, everything, keepFrom, options, page, picture, report, submitted, visit } from "./browser.mjs";

await keepFrom("sr-client-cfg.amplitude.com"); // where these pages ask for the settings of their telemetry
await report({ form, study, ranking, run, card, pause, resume, block });

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
  return { labels, tabs, text, ...(await submitted()) };
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
  return submitted();
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
  const { status } = await answered("/resume", dialog.getByRole("button", { name: "Resume" }));
  return { status, text };
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
