// What all parts of the page use: its data, elements, numbers as text. Texts only ever become text nodes.
"use strict";

let data = JSON.parse(document.getElementById("data").textContent);
// The run that is shown. Parts that compare show all of them.
let run = data.runs[0];

// An element with attributes and children. Texts become text nodes; a function becomes a listener.
function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(9).filter((child) => child != null && child !== false));
  return element;
}

// A part of the page with a heading. Returns nothing if there is nothing in it.
function section(id, title, ...children) {
  const inside = children.flat(9).filter((child) => child != null && child !== false);
  return inside.length ? el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), inside) : null;
}

function details(title, ...children) {
  return el("details", {}, el("summary", {}, title), children);
}

// A choice among [value, label] pairs, with its label before it.
function choice(label, options, chosen, onChange) {
  const select = el("select", { "aria-label": label, change: () => onChange(select.value) });
  for (const [value, text] of options) select.append(el("option", { value, selected: value === chosen }, text));
  return el("label", { class: "field" }, el("span", {}, label), select);
}

const format = {
  // 1.9 GB, in powers of ten as disks count.
  bytes(count) {
    if (count == null) return "";
    const units = ["B", "kB", "MB", "GB", "TB"];
    let at = 0;
    while (count >= 999.5 && at < 4) { count /= 1000; at += 1; }
    return `${at && count < 99.95 ? count.toFixed(1) : Math.round(count)} ${units[at]}`;
  },
  duration(seconds) {
    if (seconds == null) return "";
    if (seconds < 1) return `${seconds.toFixed(2)} s`;
    if (seconds < 60) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    const pad = (number) => String(number).padStart(2, "0");
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
    return `${Math.floor(whole / 3600)} h ${pad(Math.floor(whole / 60) % 60)} min`;
  },
  // Four significant digits.
  number(value) {
    if (value == null) return "";
    if (value === 0 || !Number.isFinite(value)) return String(value);
    const size = Math.abs(value);
    if (size < 1e-4 || size >= 1e7) return value.toExponential(2).replace("e+", "e");
    const decimals = Math.min(8, Math.max(0, 3 - Math.floor(Math.log10(size))));
    return String(Number(value.toFixed(decimals)));
  },
  figure(figure) {
    return format.number(figure.value) + (figure.unit ? ` ${figure.unit}` : "");
  },
  time(seconds) {
    const date = new Date(seconds * 1000);
    const pad = (number) => String(number).padStart(2, "0");
    const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
    return `${day} ${pad(date.getHours())}:${pad(date.getMinutes())}`;
  },
  // How far a stage has come: `30 of 150 steps`.
  progress({ done, total, unit }) {
    const amount = (count) => (unit === "bytes" ? format.bytes(count) : count.toLocaleString("en"));
    return `${amount(done)}${total ? ` of ${amount(total)}` : ""}${unit === "bytes" ? "" : ` ${unit}`}`;
  },
  percent(part) {
    return part == null ? "" : `${(100 * part).toFixed(1)} %`;
  },
  count(number, noun) {
    return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  },
  // `learning_rate` for people.
  words(name) {
    const known = { grad_norm: "gradient norm", eval_loss: "held-out loss", data_wait: "wait for data (s)" };
    return known[name] ?? name.replaceAll("_", " ");
  },
};

// The state of a stage or a run, as a word with a mark: never by colour alone.
const MARKS = { ran: "●", cached: "○", done: "●", failed: "✕", stopped: "❚❚", interrupted: "❚❚", killed: "✕", running: "▶" };
function badge(state) {
  return el("span", { class: `badge ${state.replace(" ", "-")}` }, el("span", { "aria-hidden": "true" }, MARKS[state] ?? "–"), ` ${state}`);
}

// What stands behind the name of a stage that not all points of a sweep share: `rank=8` of `finetune@rank=8`.
function pointOf(stage) {
  const [, base] = stage.points[0];
  return stage.name.startsWith(`${base}@`) ? stage.name.slice(base.length + 1) : null;
}

// The index of a stage. By its name: a page that follows its run gets new data.
function placeOf(stage) {
  return run.stages.findIndex(({ name }) => name === stage.name);
}

function clipped(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

// The name of a run that people know it by.
function runName(of) {
  return of.name ?? of.id;
}

// The colour of a custom property as canvases understand it: `light-dark()` is resolved where it is used.
const probe = document.body.appendChild(el("span", { hidden: true }));
function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

// Calls back when colours have changed: the theme, or paper.
const repaint = [];
function repaintAll() { for (const paint of repaint) paint(); }
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaintAll);
// Paper is light, also for what stands on canvases.
let theme = "";
function showTheme(name) {
  document.documentElement.dataset.theme = name;
  repaintAll();
}
addEventListener("beforeprint", () => showTheme("light"));
addEventListener("afterprint", () => showTheme(theme));
