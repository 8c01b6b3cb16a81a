// Charts of the metrics by step. Stages of the same name in other points and runs are drawn into the same chart.

const ORDER = ["loss", "eval_loss", "learning_rate", "grad_norm", "examples_per_second"];
const isMain = ({ metric }) => ORDER.includes(metric);
const SERIES = 8;
const charts = [];
let smoothing = 0;
// What a person did to charts, for their next version.
let lastCharts = new Map();

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
  lastCharts = new Map(charts.splice(0).map((chart) => [chart.title, chart.end()]));
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
  const title = `${stage}: ${format.words(metric)}`;
  const host = el("div", { class: "plot" });
  let raw = aligned(curves.map(({ curve }) => curve));
  const last = lastCharts.get(title);
  const shown = curves.map(({ label }) => !last?.hidden.includes(label));
  const values = curves.map(() => el("span", { class: "value" }));
  const legend = el("div", { class: "legend" }, curves.map(({ label }, index) => legendButton(label, index)));
  const log = el("button", { type: "button", "aria-pressed": String(last?.log ?? false), click: () => {
    log.setAttribute("aria-pressed", String(log.getAttribute("aria-pressed") !== "true"));
    build();
  } }, "log");
  const [below, asTable] = [el("div"), details("As a table")];
  const figure = el("figure", { tabindex: "0", role: "group", "data-name": title, "aria-label": `Chart of ${title}, ${curves.length === 1 ? "one curve" : `${curves.length} curves`}`, keydown: onKey },
    el("figcaption", {}, el("span", {}, format.words(metric)), log),
    host, curves.length > 1 && legend, below, asTable);
  let plot = null;
  describe();

  // What stands around the curves.
  function describe() {
    log.hidden = !curves.every(({ curve }) => curve.values.every((value) => value > 0));
    if (log.hidden) log.setAttribute("aria-pressed", "false");
    below.replaceChildren(...[notes(curves)].filter(Boolean));
    asTable.replaceChildren(asTable.firstChild, curveTable(metric, curves));
  }

  function legendButton(label, index) {
    const button = el("button", { type: "button", "aria-pressed": String(shown[index]), click: () => {
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
    const zoom = plot ? zoomedTo() : last?.zoom;
    plot?.destroy();
    const axis = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    plot = new uPlot({
      width: Math.max(200, host.clientWidth), height: 220, legend: { show: false },
      cursor: { sync: { key: stage }, points: { size: 6 }, drag: { x: true, y: false, setScale: true } },
      focus: { alpha: 0.15 },
      scales: { x: { time: false }, y: { distr: log.getAttribute("aria-pressed") === "true" ? 3 : 1 } },
      axes: [{ ...axis, size: 30, values: (_, steps) => steps.map((step) => step.toLocaleString("en")) }, { ...axis, size: 56, values: (_, values) => values.map((value) => (value == null ? "" : format.number(value))) }],
      series: [{}, ...series()],
      hooks: { setCursor: [onCursor], setScale: [(of) => { host.dataset.steps = `${of.scales.x.min} ${of.scales.x.max}`; }] },
    }, columns(), host);
    if (zoom) plot.setScale("x", zoom);
  }

  // The values under the pointer; without one, the last values.
  function onCursor(of) {
    const at = of.cursor.idx;
    curves.forEach(({ curve }, index) => {
      const column = of.data[of.data.length - curves.length + index];
      values[index].textContent = ` ${format.number(at == null ? curve.values.at(-1) : column[at])}`;
    });
  }

  // The steps that are shown, if that is a part.
  function zoomedTo() {
    const { min, max } = plot.scales.x;
    return min > raw[0][0] || max < raw[0].at(-1) ? { min, max } : null;
  }
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

  // Shows longer curves of the same names. What a person zoomed to stays.
  function update(next) {
    const zoom = plot && zoomedTo();
    [curves, raw] = [next, aligned(next.map(({ curve }) => curve))];
    describe();
    if (!plot) return;
    plot.setData(columns());
    if (zoom) plot.setScale("x", zoom);
    onCursor(plot);
  }

  // What a person did to it. It is not drawn again.
  function end() {
    const zoom = plot ? zoomedTo() : last?.zoom;
    plot?.destroy();
    plot = null;
    removeEventListener("beforeprint", beforePrint);
    return { zoom, log: log.getAttribute("aria-pressed") === "true", hidden: curves.filter((_, index) => !shown[index]).map(({ label }) => label) };
  }

  charts.push({ title, draw, reset, update, end, labels: () => labels(curves) });
  // A chart is made when it comes into view: a page may have many.
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    if (!charts.some((chart) => chart.draw === draw)) return;
    build();
    onCursor(plot);
    new ResizeObserver(() => plot && plot.width !== host.clientWidth && host.clientWidth && plot.setSize({ width: host.clientWidth, height: 220 })).observe(host);
  }, { rootMargin: "300px" }).observe(host);
  function beforePrint() {
    if (!plot) build();
  }
  addEventListener("beforeprint", beforePrint);
  return figure;
}

// Shows longer curves in the charts that there are. Returns false if there are other charts now.
function updateCurves() {
  const next = curveGroups().flatMap(([name, metrics]) => metrics.map(({ metric, curves }) => ({ title: `${name}: ${format.words(metric)}`, curves, labels: labels(curves) })));
  const known = new Map(charts.map((chart) => [chart.title, chart]));
  if (next.length !== known.size || !next.every(({ title, labels }) => known.get(title)?.labels() === labels)) return false;
  next.forEach(({ title, curves }) => known.get(title).update(curves));
  return true;
}

function labels(curves) {
  return curves.map(({ label }) => label).join("\n");
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
