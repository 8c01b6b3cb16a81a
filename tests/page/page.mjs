// Opens the report of a small run in a browser and uses it as a person does. Then changes its data, for pages that are large or
// hostile. `.ci/page` runs it:
//   node page.mjs REPORT.html FOLDER     screenshots go into FOLDER, which has playwright-core in node_modules

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [report, folder] = process.argv.slice(2).map((path) => resolve(path));
const { chromium } = createRequire(`${folder}/`)("playwright-core");
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
const html = readFileSync(report, "utf8");
const [, before, json, after] = /^([^]* id="data">)([^]*?)(<\/script>[^]*)$/.exec(html);

// The page with other data.
function changed(name, change) {
  const data = JSON.parse(json);
  change(data);
  const escaped = JSON.stringify(data).replace(/[<>&\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const path = `${folder}/${name}.html`;
  writeFileSync(path, before + escaped + after);
  return path;
}

// Opens a page, on which nothing may go wrong and which may ask for nothing.
async function open(path, options = {}) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, ...options });
  page.faults = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && page.faults.push(message.text()));
  page.on("pageerror", (error) => page.faults.push(String(error)));
  page.on("dialog", (dialog) => { page.faults.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => /^(file|data):/.test(request.url()) || page.faults.push(`request: ${request.url()}`));
  await page.goto(pathToFileURL(path).href);
  await page.waitForSelector("#stages svg");
  return page;
}

async function close(page) {
  assert.deepEqual(page.faults, []);
  await page.close();
}

const tests = {
  async "a click and the keyboard open a stage"() {
    const page = await open(report);
    const dialog = page.locator("dialog");
    await page.locator('.node[data-stage="finetune"]').click();
    assert.equal(await dialog.locator("h2").textContent(), "finetune");
    const text = await dialog.innerText();
    for (const words of ["learning_rate", "0.001", "adam_beta1", "default", "first run", "llm/model.safetensors", "version", "pretrain"]) assert.ok(text.includes(words), words);
    await page.keyboard.press("Escape");
    assert.equal(await dialog.isVisible(), false);
    await page.locator('.node[tabindex="0"]').focus();
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("Enter");
    assert.equal(await dialog.locator("h2").textContent(), "captions");
    await dialog.getByRole("button", { name: "shapes" }).click();
    assert.equal(await dialog.locator("h2").textContent(), "shapes");
    assert.ok(page.url().endsWith("#stage=shapes"));
    await close(page);
    const linked = await open(report);
    await linked.goto(`${pathToFileURL(report).href}#stage=lora`);
    await linked.waitForFunction(() => document.querySelector("dialog h2")?.textContent === "lora");
    await close(linked);
  },

  async "a table is sorted by its columns"() {
    const page = await open(report);
    const column = () => page.locator("#stages tbody tr td:nth-child(6)").allTextContents();
    await page.locator("#stages thead").getByRole("button", { name: "Peak memory" }).click();
    const sizes = (await column()).map((text) => parseFloat(text));
    assert.deepEqual(sizes, [...sizes].sort((a, b) => b - a));
    assert.equal(await page.locator('#stages th[aria-sort="descending"]').count(), 1);
    await close(page);
  },

  async "a curve is zoomed and smoothed"() {
    const page = await open(report);
    const plot = page.locator('figure[aria-label^="Chart of finetune: loss"] .plot');
    await plot.scrollIntoViewIfNeeded();
    await page.waitForSelector('figure[aria-label^="Chart of finetune: loss"] canvas');
    const steps = () => plot.getAttribute("data-steps");
    const whole = await steps();
    assert.equal(whole, "1 16");
    const box = await plot.locator(".u-over").boundingBox();
    await page.mouse.move(box.x + box.width * 0.25, box.y + 40);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.5, box.y + 60, { steps: 5 });
    await page.mouse.up();
    const [from, to] = (await steps()).split(" ").map(Number);
    assert.ok(from > 3 && from < 6 && to > 7 && to < 10, `${from} to ${to}`);
    await plot.locator(".u-over").dblclick();
    assert.equal(await steps(), whole);
    await page.locator('figure[aria-label^="Chart of finetune: loss"]').focus();
    await page.keyboard.press("+");
    assert.notEqual(await steps(), whole);
    await page.keyboard.press("0");
    assert.equal(await steps(), whole);
    const pixels = () => plot.locator("canvas").evaluate((canvas) => canvas.toDataURL());
    const raw = await pixels();
    await page.getByLabel("Smoothing").fill("0.9");
    await page.waitForTimeout(100);
    assert.notEqual(await pixels(), raw);
    await close(page);
  },

  async "answers are filtered, and two models stand side by side"() {
    const path = changed("two_models", (data) => {
      const other = structuredClone(data.answers[0]);
      // The other model says yes to every third question.
      other.rows.forEach((row, index) => { if (index % 3 === 0) Object.assign(row, { answer: "Yes", score: row.truth[0] === "yes" ? 1 : 0 }); });
      other.stage = data.answers[1].stage;
      data.answers[1] = other;
    });
    const page = await open(path);
    const cards = page.locator("#answers .answer");
    const count = async () => Number(/^(\d+) answer/.exec(await page.locator("#answers [role=status]").textContent())[1]);
    assert.equal(await count(), 36);
    assert.ok(await cards.first().locator("img").evaluate((image) => image.decode().then(() => image.naturalWidth > 0)));
    const select = (label, value) => page.locator("#answers").getByLabel(label, { exact: true }).selectOption(value);
    await select("Show", "wrong");
    const wrong = await count();
    assert.ok(wrong > 0 && wrong < 36);
    assert.equal(await cards.locator(".verdict.right").count(), 0);
    await select("Show", "right");
    assert.equal(await count(), 36 - wrong);
    await select("Show", "all");
    await select("Category", "popular");
    assert.equal(await count(), 12);
    await select("Category", "");
    await page.locator("#answers").getByLabel("Search").fill("triangle");
    assert.ok(await count() < 36);
    await page.locator("#answers").getByLabel("Search").fill("");
    await select("beside", "1");
    assert.equal(await count(), 12);
    assert.equal(await cards.first().locator(".said").count(), 2);
    await page.locator("#answers").screenshot({ path: `${folder}/answers.png` });
    await close(page);
  },

  async "no text of the data becomes markup or a script"() {
    const words = `</script><img src=x onerror="alert(1)"><script>alert(2)</script><!-- \u2028\u0000\u001b[2J {{SCRIPT}} "'`;
    const hostile = (value, name) => {
      if (typeof value === "string") return ["kind", "state", "better", "path"].includes(name) || /^(data:|[\d.]+$)/.test(value) ? value : value + words;
      if (Array.isArray(value)) return value.map((inner) => hostile(inner, name));
      if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, hostile(inner, key)]));
      return value;
    };
    const path = changed("hostile", (data) => { data.runs = hostile(data.runs); data.answers = hostile(data.answers); data.tables = hostile(data.tables); });
    const page = await open(path);
    await page.locator(".node").nth(6).click();
    assert.ok((await page.locator("dialog pre").textContent()).includes("<img src=x"));
    assert.equal(await page.locator("img[src=x]").count(), 0);
    assert.equal(await page.locator("script").count(), 2);
    await close(page);
  },

  async "the policy forbids scripts that are not the page's"() {
    const page = await open(report);
    const ran = await page.evaluate(() => {
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
      return window.ran === true;
    });
    assert.equal(ran, false);
    await page.close();
  },

  async "200 stages"() {
    const path = changed("stages", (data) => {
      const [run] = data.runs;
      const [box] = run.stages.filter((stage) => stage.name === "merge");
      run.stages = Array.from({ length: 200 }, (_, index) => ({ ...structuredClone(box), name: `stage_${index}`, points: [[0, `stage_${index}`]], inputs: index < 10 ? {} : { model: index - 10 }, began: index, ended: index + 1.5 }));
      const corner = (index) => [16 + 230 * Math.floor(index / 10), 8 + 56 * (index % 10)];
      run.drawing = { ...run.drawing, width: 4616, height: 576, corners: run.stages.map((_, index) => corner(index)), edges: run.stages.slice(10).map((_, index) => ({ from: index, to: index + 10, path: `M${corner(index)[0] + 170},${corner(index)[1] + 20} H${corner(index + 10)[0]}` })) };
      run.changes = null;
      Object.assign(data, { answers: [], tables: [] });
    });
    const page = await open(path);
    assert.equal(await page.locator(".node").count(), 200);
    await page.locator('.node[data-stage="stage_137"]').click();
    assert.equal(await page.locator("dialog h2").textContent(), "stage_137");
    await page.keyboard.press("Escape");
    await page.screenshot({ path: `${folder}/stages.png`, fullPage: true });
    await close(page);
  },

  async "20 curves of 100,000 points"() {
    const path = changed("curves", (data) => {
      const [run] = data.runs;
      const [stage] = run.stages.filter((stage) => stage.name === "finetune");
      const steps = Array.from({ length: 100_000 }, (_, index) => index + 1);
      const curve = (of) => ({ name: "loss", points: 100_000, steps, values: steps.map((step) => Number((6 * Math.exp(-step / (10_000 * (1 + of))) + 0.1 * Math.sin(step * (of + 1))).toFixed(4))) });
      run.points = Array.from({ length: 20 }, (_, index) => ({ label: `rank=${index}`, values: [["rank", String(index)]] }));
      run.stages = run.points.map((point, index) => ({ ...structuredClone({ ...stage, curves: [] }), name: `finetune@${point.label}`, points: [[index, "finetune"]], inputs: {}, curves: [curve(index)] }));
      run.drawing.corners = run.stages.map((_, index) => [16, 8 + 56 * index]);
      Object.assign(run.drawing, { width: 300, height: 1200, edges: [] });
      Object.assign(data, { answers: [], tables: [] });
    });
    const page = await open(path);
    const figure = page.locator('figure[aria-label^="Chart of finetune: loss"]');
    await figure.scrollIntoViewIfNeeded();
    await figure.locator("canvas").waitFor();
    await page.getByLabel("Smoothing").fill("0.5");
    await figure.focus();
    await page.keyboard.press("+");
    assert.notEqual(await figure.locator(".plot").getAttribute("data-steps"), "1 100000");
    await figure.getByRole("button", { name: /^rank=3 / }).click();
    assert.equal(await figure.locator('[aria-pressed="false"]').filter({ hasText: "rank=3" }).count(), 1);
    await page.locator("#curves").screenshot({ path: `${folder}/curves.png` });
    await close(page);
  },

  async "light and dark, narrow and wide, and on paper"() {
    for (const colorScheme of ["light", "dark"]) {
      for (const width of [390, 1600]) {
        const page = await open(report, { colorScheme, viewport: { width, height: 900 } });
        // Nothing sticks out: wide parts scroll by themselves.
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(wide <= 0, `${width}: ${wide} pixels too wide`);
        for (let y = 0; y < 8000; y += 500) { await page.mouse.wheel(0, 500); await page.waitForTimeout(20); }
        await page.screenshot({ path: `${folder}/${colorScheme}_${width}.png`, fullPage: true });
        await close(page);
      }
    }
    const page = await open(report);
    await page.pdf({ path: `${folder}/paper.pdf`, format: "A4" });
    await close(page);
  },
};

let failed = 0;
for (const [name, test] of Object.entries(tests)) {
  try {
    await test();
    console.log(`ok      ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n${error.stack}`);
  }
}
await browser.close();
process.exit(failed ? 1 : 0);
