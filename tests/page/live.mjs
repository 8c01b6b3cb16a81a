// Watches a run in a browser: what a person did to the page survives its updates. The data come from `imp-flow watch`; longer
// curves, another log and a further stage are put into them on their way, as a run that goes on would. `.ci/page` runs it:
//   node live.mjs ADDRESS FOLDER         screenshots go into FOLDER, which has playwright-core in node_modules

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const address = process.argv[2];
const folder = resolve(process.argv[3]);
const { chromium } = createRequire(`${folder}/`)("playwright-core");
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
const faults = [];
page.on("console", (message) => ["error", "warning"].includes(message.type()) && faults.push(message.text()));
page.on("pageerror", (error) => faults.push(String(error)));
page.on("request", (request) => request.url().startsWith(address) || request.url().startsWith("data:") || faults.push(`request: ${request.url()}`));

// The run is as if it went on: version 1, 2, … has ever longer curves and logs.
let version = 0;
let answered = 0;
await page.route("**/data", async (route) => {
  const data = await (await route.fetch({ headers: {} })).json();
  const [run] = data.runs;
  run.state = "running";
  for (const curve of run.stages.flatMap((stage) => (stage.name === "finetune" ? stage.curves : []))) {
    for (let more = 0; more < 4 * version; more += 1) {
      curve.steps.push(curve.steps.at(-1) + 1);
      curve.values.push(curve.values.at(-1));
    }
    curve.points = curve.steps.length;
  }
  const finetune = run.stages.find((stage) => stage.name === "finetune");
  finetune.log.tail += "a line of the log\n".repeat(60 * version);
  if (version > 1) data.answers = data.answers.slice(0, 1);
  if (version > 2) finetune.curves.push({ ...structuredClone(finetune.curves[0]), name: "another_metric" });
  answered = version;
  await route.fulfill({ json: data, headers: { etag: `"${version}"` } });
});
async function next() {
  version += 1;
  while (answered < version) await page.waitForTimeout(100);
  await page.waitForTimeout(300);
}

await page.goto(address);
await page.waitForSelector("#stages svg");
await page.waitForFunction(() => document.getElementById("connection")?.textContent.includes("follows"));

// Zoomed, logarithmic, sorted, filtered.
const figure = page.locator('figure[data-name="finetune: loss"]');
const steps = () => figure.locator(".plot").getAttribute("data-steps");
await figure.scrollIntoViewIfNeeded();
await figure.locator("canvas").waitFor();
await figure.focus();
await page.keyboard.press("+");
await figure.getByRole("button", { name: "log" }).click();
await figure.locator("summary").click();
const zoom = await steps();
assert.notEqual(zoom, "1 16");
await page.locator("#stages thead").getByRole("button", { name: "Peak memory" }).click();
await page.locator("#answers").getByLabel("Show", { exact: true }).selectOption("wrong");
await page.locator("#answers").getByLabel("Search").fill("circle");
const count = await page.locator("#answers [role=status]").textContent();

// Curves grow in the charts that there are.
await next();
assert.equal(await steps(), zoom);
assert.equal(await figure.getByRole("button", { name: "log" }).getAttribute("aria-pressed"), "true");
assert.ok(await figure.locator("details").evaluate((details) => details.open));
assert.ok((await figure.locator("tbody td").first().textContent()).includes("20"));
assert.equal(await page.locator('#stages th[aria-sort="descending"]').textContent(), "Peak memory ↓");
assert.equal(await page.locator("#answers [role=status]").textContent(), count);

// A part that is made anew has what was typed and chosen, and the focus.
await page.locator("#answers").getByLabel("Search").focus();
await next();
assert.equal(await page.locator("#answers").getByLabel("Search").inputValue(), "circle");
assert.equal(await page.locator("#answers").getByLabel("Show", { exact: true }).inputValue(), "wrong");
assert.equal(await page.evaluate(() => document.activeElement.type), "search");

// Other charts: those that were there are as they were. What is read stays where it is.
const where = () => page.locator("#curves").evaluate((part) => part.getBoundingClientRect().top);
await page.locator("#curves").scrollIntoViewIfNeeded();
await figure.scrollIntoViewIfNeeded();
const before = await where();
await next();
await page.locator('figure[data-name="finetune: another metric"]').waitFor({ state: "attached" });
assert.ok(Math.abs((await where()) - before) < 2, `${before} became ${await where()}`);
await figure.locator("canvas").waitFor();
assert.equal(await steps(), zoom);
assert.equal(await figure.getByRole("button", { name: "log" }).getAttribute("aria-pressed"), "true");

// An open window stays open and where it was, with the new end of the log.
await page.locator('#stages .node[data-stage="finetune"]').click();
const dialog = page.locator("dialog");
await dialog.getByRole("button", { name: "Value" }).last().click();
const sorted = await dialog.locator("th[aria-sort]").count();
await dialog.evaluate((dialog) => { dialog.scrollTop = 250; });
const log = () => dialog.locator("pre").textContent();
const lines = (await log()).length;
await next();
assert.ok(await dialog.isVisible());
assert.equal(await dialog.evaluate((dialog) => dialog.scrollTop), 250);
assert.equal(await dialog.locator("th[aria-sort]").count(), sorted);
assert.ok((await log()).length > lines);
await page.screenshot({ path: `${folder}/live.png` });
await page.keyboard.press("Escape");

assert.deepEqual(faults, []);
// Without the server the page says so, and keeps what it has.
await page.unroute("**/data");
await page.route("**/data", (route) => route.abort());
await page.waitForFunction(() => document.getElementById("connection").textContent.includes("No connection"), null, { timeout: 15_000 });
assert.ok(await page.locator("#stages svg").isVisible());
await browser.close();
console.log("ok      a page that follows its run keeps what a person did to it");
