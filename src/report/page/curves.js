// Charts of the metrics by step. Stages of the same name in other points and runs are drawn into the same chart.

const ORDER = ["loss", "eval_loss", "learning_rate", "grad_norm", "examples_per_second"];
const isMain = ({ metric }) => ORDER.includes(metric);
const SERIES = 8;
const charts = [];
let smoothing = 0;

// Charts by stage: [name of the stage, [{ metric, curves: [{ label, curve }] }]].
function curveGroups() {
  const groups = new Map();
  data.runs.forEach((of) => of.stages.forEach((stage) => stage.curves.forEach((curve) => {
    const [, name] = stage.points[0];
    const labels = [data.runs.length > 1 && runName(of), pointOf(stage)];
    const metrics = groups.get(name) ?? groups.set(name, new Map()).get(name);
    const curves = metrics.get(curve.name) ?? metrics.set(curve.name, []).get(curve.name);
    curves.push({ label: labels.filter(Boolean).join(", ") || name, curve });
  })));
  const rank = (metric) => (ORDER.includes(metric) ? ORDER.indexOf(metric) : ORDER.length);
  return [...groups].map(([name, metrics]) => [name, [...metrics].map(([metric, curves]) => ({ metric, curves }))
    .sort((a, b) => rank(a.metric) - rank(b.metric) || a.metric.localeCompare(b.metric))]);
}

function curveSection() {
  const groups = curveGroups();
  if (!groups.length) return null;
  const weight = el("output", {}, "off");
  const slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: 0, input: () => {
    smoothing = Number(slider.value);
    weight.textContent = smoothing ? smoothing.toFixed(2) : "off";
    charts.forEach((chart) => chart.draw());
  } });
  const reset = el("button", { type: "button", click: () => charts.forEach((chart) => chart.reset()) }, "Reset zoom");
  return [
    el("div", { class: "bar" }, el("label", { class: "field" }, el("span", {}, "Smoothing"), slider, weight), reset,
      el("span", { class: "quiet" }, "Drag over a chart to zoom in; double-click to zoom out. With the keyboard: + − ← → 0.")),
    groups.map(([name, metrics]) => {
      const charts = (chosen) => el("div", { class: "charts" }, chosen.map(({ metric, curves }) => chart(name, metric, curves)));
      const [first, rest] = [metrics.filter(isMain), metrics.filter((one) => !isMain(one))];
      return [el("h3", {}, name), charts(first.length ? first : rest), first.length > 0 && rest.length > 0 && details(`More curves of ${name}: ${rest.map(({ metric }) => format.words(metric)).join(", ")}`, charts(rest))];
    }),
  ];
}

// The exponential mean with bias correction: m ← w·m + (1 − w)·x, divided by 1 − wᵗ (Kingma and Ba 2015, section 3).
function smooth(values, weight) {
  let [mean, power] = [0, 1];
  return values.map((value) => {
    if (value == null) return value;
    power *= weight;
    mean = weight * mean + (1 - weight) * value;
    return mean / (1 - power);
  });
}

// All curves on one axis of steps, as uPlot wants them.
function aligned(curves) {
  const first = curves[0].steps;
  const same = (steps) => steps.length === first.length && steps.every((step, index) => step === first[index]);
  if (curves.every((curve) => same(curve.steps))) return [first, ...curves.map((curve) => curve.values)];
  return uPlot.join(curves.map((curve) => [curve.steps, curve.values]));
}

function chart(stage, metric, curves) {
  const host = el("div", { class: "plot" });
  const raw = aligned(curves.map(({ curve }) => curve));
  const shown = curves.map(() => true);
  const values = curves.map(() => el("span", { class: "value" }));
  const legend = el("div", { class: "legend" }, curves.map(({ label }, index) => legendButton(label, index)));
  const log = el("button", { type: "button", "aria-pressed": "false", click: () => {
    log.setAttribute("aria-pressed", String(log.getAttribute("aria-pressed") !== "true"));
    build();
  } }, "log");
  const positive = curves.every(({ curve }) => curve.values.every((value) => value > 0));
  const title = `${stage}: ${format.words(metric)}`;
  const figure = el("figure", { tabindex: "0", role: "group", "aria-label": `Chart of ${title}, ${curves.length === 1 ? "one curve" : `${curves.length} curves`}`, keydown: onKey },
    el("figcaption", {}, el("span", {}, format.words(metric)), positive && log),
    host, curves.length > 1 && legend, notes(curves), details("As a table", curveTable(metric, curves)));
  let plot = null;

  function legendButton(label, index) {
    const button = el("button", { type: "button", "aria-pressed": "true", click: () => {
      shown[index] = !shown[index];
      button.setAttribute("aria-pressed", String(shown[index]));
      draw();
    }, pointerenter: () => focus(index), pointerleave: () => focus(null), focus: () => focus(index), blur: () => focus(null) },
    el("span", { class: `swatch c${index % SERIES}`, "aria-hidden": "true" }), label, values[index]);
    return button;
  }

  // Makes the other curves faint.
  function focus(index) {
    plot?.setSeries(index == null ? null : plot.series.length - curves.length + index, { focus: index != null });
  }

  // Faint raw curves below smoothed ones.
  function series() {
    const of = (index, faint) => ({
      stroke: colour(`series-${index % SERIES}`), width: faint ? 1 : 1.6, alpha: faint ? 0.25 : 1, spanGaps: true,
      dash: index >= SERIES ? [6, 4] : undefined, points: { show: false }, show: shown[index],
    });
    return [...(smoothing ? curves.map((_, index) => of(index, true)) : []), ...curves.map((_, index) => of(index, false))];
  }

  function columns() {
    const smoothed = smoothing ? raw.slice(1).map((values) => smooth(values, smoothing)) : [];
    return [...raw, ...smoothed];
  }

  function build() {
    const zoom = plot && zoomed() ? { min: plot.scales.x.min, max: plot.scales.x.max } : null;
    plot?.destroy();
    const axis = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    plot = new uPlot({
      width: Math.max(200, host.clientWidth), height: 220, legend: { show: false },
      cursor: { sync: { key: stage }, points: { size: 6 }, drag: { x: true, y: false, setScale: true } },
      focus: { alpha: 0.15 },
      scales: { x: { time: false }, y: { distr: log.getAttribute("aria-pressed") === "true" ? 3 : 1 } },
      axes: [{ ...axis, size: 30, values: (_, steps) => steps.map((step) => step.toLocaleString("en")) }, { ...axis, size: 56, values: (_, values) => values.map((value) => (value == null ? "" : format.number(value))) }],
      series: [{}, ...series()],
      hooks: { setCursor: [onCursor] },
    }, columns(), host);
    if (zoom) plot.setScale("x", zoom);
    host.dataset.steps = steps();
  }

  // The values under the pointer; without one, the last values.
  function onCursor(of) {
    const at = of.cursor.idx;
    curves.forEach(({ curve }, index) => {
      const column = of.data[of.data.length - curves.length + index];
      values[index].textContent = ` ${format.number(at == null ? curve.values.at(-1) : column[at])}`;
    });
  }

  const zoomed = () => plot.scales.x.min > raw[0][0] || plot.scales.x.max < raw[0].at(-1);
  const steps = () => `${plot.scales.x.min} ${plot.scales.x.max}`;
  function zoom(min, max) {
    const [first, last] = [raw[0][0], raw[0].at(-1)];
    const span = Math.min(max - min, last - first);
    const start = Math.min(Math.max(min, first), last - span);
    if (span > 0) plot.setScale("x", { min: start, max: start + span });
  }

  function onKey(event) {
    const { min, max } = plot.scales.x;
    const span = max - min;
    const move = { "+": [span / 4, -span / 4], "=": [span / 4, -span / 4], "-": [-span / 2, span / 2], ArrowLeft: [-span / 4, -span / 4], ArrowRight: [span / 4, span / 4] }[event.key];
    if (event.target !== figure || event.ctrlKey || event.metaKey || (!move && event.key !== "0")) return;
    if (move) zoom(min + move[0], max + move[1]);
    else reset();
    event.preventDefault();
  }

  function draw() {
    if (plot) build();
  }
  function reset() {
    plot?.setScale("x", { min: raw[0][0], max: raw[0].at(-1) });
  }

  charts.push({ draw, reset });
  // A chart is made when it comes into view: a page may have many.
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    build();
    onCursor(plot);
    new ResizeObserver(() => plot.width !== host.clientWidth && host.clientWidth && plot.setSize({ width: host.clientWidth, height: 220 })).observe(host);
    plot.hooks.setScale = [() => { host.dataset.steps = steps(); }];
  }, { rootMargin: "300px" }).observe(host);
  addEventListener("beforeprint", () => { if (!plot) build(); });
  return figure;
}

// What is not as the stage wrote it.
function notes(curves) {
  const cut = curves.filter(({ curve }) => curve.points > curve.values.length);
  const lost = curves.reduce((sum, { curve }) => sum + (curve.not_finite ?? 0), 0);
  const texts = [];
  if (cut.length) {
    const { points, values } = cut[0].curve;
    texts.push(`${values.length.toLocaleString("en")} of ${points.toLocaleString("en")} points are drawn${cut.length > 1 ? " for each curve" : ""}: the lowest and highest of every stretch.`);
  }
  if (lost) texts.push(`${format.count(lost, "value")} ${lost === 1 ? "is" : "are"} not a number.`);
  return texts.length ? el("p", { class: lost ? "caution" : "quiet small" }, texts.join(" ")) : null;
}

function curveTable(metric, curves) {
  // Without spreading: curves can be longer than a call may have arguments.
  const extreme = (values, better) => values.reduce((best, value) => (better(value, best) ? value : best), values[0]);
  const number = (title, of) => ({ title, value: ({ curve }) => of(curve.values), cell: ({ curve }) => format.number(of(curve.values)), right: true });
  return table(format.words(metric), [
    { title: "Curve", value: ({ label }) => label },
    { title: "Steps", value: ({ curve }) => curve.points, right: true },
    number("First", (values) => values[0]),
    number("Lowest", (values) => extreme(values, (a, b) => a < b)),
    number("Highest", (values) => extreme(values, (a, b) => a > b)),
    number("Last", (values) => values.at(-1)),
  ], curves);
}

repaint.push(() => charts.forEach((chart) => chart.draw()));
