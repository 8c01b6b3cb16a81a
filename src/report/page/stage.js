// The window about one stage.

const dialog = document.getElementById("stage");

function openStage(index) {
  const stage = run.stages[index];
  dialog.replaceChildren(...aboutStage(stage));
  dialog.dataset.name = stage.name;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  history.replaceState(null, "", `#stage=${encodeURIComponent(stage.name)}`);
}

// What is in the window.
function aboutStage(stage) {
  const { result } = stage;
  return [
    el("header", {},
      el("div", {}, el("h2", { id: "stage-name" }, stage.name), el("p", { class: "quiet" }, `${stage.kind}: ${data.kinds[stage.kind]?.about ?? ""}`)),
      badge(stage.state),
      el("button", { type: "button", class: "close", "aria-label": "Close", click: () => dialog.close() }, "✕")),
    el("div", { class: "inside" },
      stage.failure && el("p", { class: "alert" }, stage.failure),
      (result?.cautions ?? []).map((caution) => el("p", { class: "caution" }, caution)),
      part("What happened", happened(stage)),
      part("Figures", result?.figures.length ? figureTable(result.figures) : null),
      part("Configuration", configuration(stage)),
      part("Inputs", inputs(stage)),
      part("Output", output(result)),
      part("Log", log(stage.log))),
  ];
}

dialog.addEventListener("close", () => history.replaceState(null, "", "#"));
// A click beside the window closes it.
dialog.addEventListener("click", (event) => { if (event.target === dialog && event.clientX < dialog.getBoundingClientRect().left) dialog.close(); });

function part(title, ...children) {
  const inside = children.flat(9).filter((child) => child != null && child !== false);
  return inside.length ? [el("h3", {}, title), inside] : null;
}

function happened(stage) {
  const { result } = stage;
  if (!result && stage.began == null) return el("p", { class: "quiet" }, "It has no result.");
  const wait = waiting(placeOf(stage));
  const [pipeline, name] = result?.made_for ?? [];
  return listing([
    ["in this run", stage.began == null ? "not run" : `from ${format.duration(stage.began)} ${stage.ended == null ? "on" : `to ${format.duration(stage.ended)}`} after the start`],
    ["so far", stage.progress && format.progress(stage.progress)],
    ["waited for", wait?.text],
    ["last ran", result && `${format.time(result.finished)}, took ${format.duration(result.seconds)}${result.sessions > 1 ? ` in ${result.sessions} sessions` : ""}`],
    ["why", result && reason(stage)],
    ["made for", result && (pipeline !== run.pipeline || name !== stage.points[0][1]) ? `${pipeline}, ${name}` : null],
    ["peak memory", format.bytes(result?.peak_memory)],
    ["computed on", result?.environment],
    ["host", result?.host],
    ["imp-flow", result && `${result.made_by}, version ${result.version} of the kind`],
    ["key", result && el("code", {}, result.key)],
  ]);
}

function figureTable(figures) {
  const order = [...figures].sort((a, b) => b.headline - a.headline || a.name.localeCompare(b.name));
  return table("Figures", [
    { title: "Figure", value: (figure) => figure.name, cell: (figure) => (figure.headline ? el("strong", {}, figure.name) : figure.name) },
    { title: "Value", value: (figure) => figure.value, cell: (figure) => format.figure(figure), right: true },
    { title: "Better", value: (figure) => ({ higher: "higher", lower: "lower", neither: "" })[figure.better] },
  ], order);
}

// All keys: first those that are not the defaults.
function configuration(stage) {
  const keys = data.kinds[stage.kind]?.keys ?? {};
  const rows = Object.entries(stage.config).map(([name, value]) => ({ name, value, mark: "" }));
  for (const [name, { default: value }] of Object.entries(keys)) {
    if (value != null && !(name in stage.config) && !(stage.lacking ?? []).includes(name)) rows.push({ name, value, mark: "default" });
  }
  rows.unshift({ name: "seed", value: String(stage.seed), mark: "" });
  for (const [name, value] of Object.entries(stage.runtime ?? {})) rows.push({ name: `runtime.${name}`, value, mark: "no effect on the result" });
  return table("Configuration", [
    { title: "Key", value: (row) => row.name, cell: (row) => el("code", { title: keys[row.name]?.about }, row.name) },
    { title: "Value", value: (row) => row.value, cell: (row) => el("code", {}, row.value), wrap: true },
    { title: "", value: (row) => row.mark, cell: (row) => el("span", { class: "quiet" }, row.mark) },
  ], rows, (row) => ({ class: row.mark === "default" ? "quiet" : null }));
}

function inputs(stage) {
  const rows = Object.entries(stage.inputs);
  return rows.length ? table("Inputs", [
    { title: "Input", value: ([name]) => name },
    { title: "Stage", value: ([, from]) => run.stages[from].name, cell: ([, from]) => el("button", { type: "button", class: "link", click: () => openStage(from) }, run.stages[from].name) },
    { title: "Content", value: ([name]) => stage.result?.inputs[name], cell: ([name]) => el("code", {}, (stage.result?.inputs[name] ?? "").slice(0, 12)) },
  ], rows) : null;
}

function output(result) {
  if (!result) return null;
  const { bytes, files, digest, largest } = result.output;
  const more = files - largest.length;
  return [
    el("p", {}, `${format.bytes(bytes)} in ${format.count(files, "file")}, content `, el("code", {}, digest.slice(0, 12)), more > 0 ? `; the largest ${largest.length}:` : ":"),
    largest.length ? table("Files", [
      { title: "File", value: ([path]) => path, cell: ([path]) => el("code", {}, path), wrap: true },
      { title: "Size", value: ([, size]) => size, cell: ([, size]) => format.bytes(size), right: true },
    ], largest) : el("p", { class: "quiet" }, "The files are not listed here."),
  ];
}

function log({ bytes, tail, cut }) {
  if (!bytes) return null;
  return [cut ? el("p", { class: "quiet" }, `The end of ${format.bytes(bytes)}. imp-flow log shows all of it.`) : null, el("pre", { tabindex: "0" }, tail)];
}
