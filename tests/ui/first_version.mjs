// Visits to the first version of Prefect's UI, whose pages are not below /v2; browser.mjs says how they are called.
//
// Selectors follow what people see (labels, button names) where the pages allow it, and Prefect's class names elsewhere.
import { answered, everything, options, page, report, submitted, visit } from "./browser.mjs";

await report({ form, groups, study, run, card, suspend, resume, retry });

// Reads the form of a deployment, fills it in, and submits it.
async function form() {
  await openForm();
  const groups = await groupsOfDrivers();
  // By way of another one, none of whose settings may stay.
  await choose("driver", "SLSQP");
  await field("Ftol").waitFor();
  await choose("driver", "Adam");
  await fill("Learning Rate", options.learningRate, { kind: "float" });
  await fill("Max Steps", options.maxSteps);
  await fill("run_key", options.runKey, { kind: "str" });
  const madeUp = await name().inputValue();
  await name().fill(options.name);
  const text = await everything();
  const labels = [...text.matchAll(/^(.+) \(Optional\)$/gm)].map((match) => match[1]);
  return { madeUp, groups, labels, text, ...(await submitted()) };
}

// Submits the form once for each group of drivers, with nothing else touched: what each sends. The runs are put off.
async function groups() {
  await page.route("**/create_flow_run", (route) => {
    const { parameters } = route.request().postDataJSON();
    const state = { type: "SCHEDULED", state_details: { scheduled_time: "2199-01-01T00:00:00Z" } };
    return route.continue({ postData: JSON.stringify({ parameters, state }) });
  });
  await openForm();
  const drivers = {};
  for (const group of await groupsOfDrivers()) {
    await openForm();
    await choose("driver", group);
    drivers[group] = (await submitted()).parameters.driver;
  }
  return drivers;
}

// Fills in the form of a multi-start, and submits it.
async function study() {
  await openForm();
  await name().fill(options.name);
  await fill("n_elements", "20");
  await fill("N", "2");
  await fill("Seed", "7");
  await fill("Max Steps", "4");
  await fill("run_key", options.runKey, { kind: "str" });
  return submitted();
}

// Presses Suspend on the page of a run that is under way.
async function suspend() {
  await visit(`/runs/flow-run/${options.run}`);
  await page.getByRole("button", { name: "Suspend", exact: true }).click();
  return answered("/set_state", page.getByRole("dialog").getByRole("button", { name: "Submit", exact: true }));
}

// Fills in the form that Resume opens, and sends it.
async function resume() {
  await visit(`/runs/flow-run/${options.run}`);
  await page.getByRole("button", { name: "Resume", exact: true }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByText("What to do now.").waitFor();
  await fill("Learning Rate", options.learningRate, { kind: "float", where: dialog });
  await fill("Max Steps", options.maxSteps, { kind: "int", where: dialog });
  const text = await dialog.innerText();
  const { status } = await answered("/resume", dialog.getByRole("button", { name: "Submit", exact: true }));
  return { status, text };
}

// The page of a run: its state, and its cards.
async function run() {
  await visit(`/runs/flow-run/${options.run}`);
  await page.getByText("NotConverged").first().waitFor();
  await page.getByText("Details", { exact: true }).first().click();
  const details = await everything();
  await page.getByText("Artifacts", { exact: true }).first().click();
  await page.getByText("-progress").first().waitFor();
  return { text: details, cards: await everything() };
}

// The page of a card with a picture.
async function card() {
  await visit(`/artifacts/artifact/${options.artifact}`);
  const image = page.locator("img[src^='data:image']").first();
  await image.waitFor();
  const width = await image.evaluate((it) => it.decode().then(() => it.naturalWidth));
  return { width, text: await everything() };
}

// Presses Retry on the page of a run that is over.
async function retry() {
  await visit(`/runs/flow-run/${options.run}`);
  await page.getByRole("button", { name: "Retry" }).first().click();
  return answered("/set_state", page.getByRole("dialog").getByRole("button", { name: "Retry" }));
}

async function openForm() {
  await visit(`/deployments/deployment/${options.deployment}/run`);
  await field("driver").waitFor();
}

// The box of the run's name, which is never empty.
function name() {
  return page.locator(".flow-run-name-input input");
}

// What a driver may be, in a form that nobody has touched.
async function groupsOfDrivers() {
  return (await field("driver").getByRole("button").allInnerTexts()).filter((text) => text);
}

// A field with its label and description; a group of fields holds them.
function field(label, where = page) {
  const title = new RegExp(`^${label}( \\(Optional\\))?$`);
  const found = where.locator(".schema-form-property__label").filter({ hasText: title });
  return found.first().locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' p-label ')][1]");
}

// Chooses one of the kinds of a field, or one of the groups that it may be.
async function choose(label, kind, where = page) {
  await field(label, where).getByRole("button", { name: kind, exact: true }).first().click();
}

async function fill(label, text, { kind, where = page } = {}) {
  if (kind) await choose(label, kind, where);
  await field(label, where).locator("input, textarea").first().fill(text);
}
