// The head of the page: what ran and how it ended, what changed, scores beside published ones, the pipeline's text.

function head() {
  const runs = data.runs.map((of, index) => [String(index), `${runName(of)}, ${format.time(of.started)}`]);
  const themes = choice("Theme", [["", "as the system"], ["light", "light"], ["dark", "dark"]], theme, (value) => showTheme(theme = value));
  return el("div", { class: "inside" },
    el("div", {},
      el("h1", {}, run.pipeline, badge(run.state)),
      el("p", { class: "quiet" }, [run.name, `run ${run.id}`, format.time(run.started), `${run.state === "running" ? "for" : "took"} ${format.duration(run.seconds)}`, `on ${run.host}`, `imp-flow ${run.made_by}`].filter(Boolean).join(" · "))),
    el("div", { class: "bar" }, runs.length > 1 && choice("Run", runs, String(data.runs.indexOf(run)), (value) => { run = data.runs[Number(value)]; build(); }), themes),
    el("nav", { "aria-label": "Parts of the page", id: "contents" }));
}

function overview() {
  const { stages } = run;
  const count = (state) => stages.filter((stage) => stage.state === state).length;
  const states = ["ran", "cached", "running", "failed", "killed", "stopped", "skipped", "left out", "not started"].map((state) => [count(state), state]).filter(([number]) => number);
  const most = stages.filter((stage) => stage.began != null).reduce((most, stage) => Math.max(most, stage.result?.peak_memory ?? 0), 0);
  const size = stages.reduce((sum, stage) => sum + (stage.result?.output.bytes ?? 0), 0);
  const tile = (title, value, more) => value && el("div", { class: "tile" }, el("span", { class: "quiet" }, title), el("strong", {}, value), more && el("span", { class: "quiet small" }, more));
  const failed = stages.filter((stage) => stage.failure);
  const cautions = stages.flatMap((stage) => (stage.result?.cautions ?? []).map((caution) => [stage, caution]));
  const open = (stage) => el("button", { type: "button", class: "link", click: () => openStage(placeOf(stage)) }, stage.name);
  return [
    el("div", { class: "tiles" },
      tile("Stages", String(stages.length), states.map(([number, state]) => `${number} ${state}`).join(", ")),
      tile("Time of this run", format.duration(run.seconds)),
      tile("Most memory of a stage", most ? format.bytes(most) : null),
      tile("Size of all results", format.bytes(size)),
      headlines().map(([stage, figure]) => tile(`${stage.name}: ${format.words(figure.name)}`, format.figure(figure)))),
    stages.filter((stage) => stage.state === "running").map((stage) => el("p", {}, open(stage), ` runs${stage.progress ? `: ${format.progress(stage.progress)} ` : ""}`,
      stage.progress?.total > 0 && el("progress", { max: stage.progress.total, value: stage.progress.done, "aria-label": `Progress of ${stage.name}` }))),
    failed.map((stage) => el("p", { class: "alert" }, open(stage), ` failed: ${stage.failure}`)),
    cautions.map(([stage, caution]) => el("p", { class: "caution" }, open(stage), `: ${caution}`)),
    run.overrides.length > 0 && el("p", {}, el("span", { class: "quiet" }, "with "), run.overrides.map((text) => [el("code", {}, `--set ${text}`), " "])),
  ];
}

// The first headline figure of the last stages, in a run without a sweep.
function headlines() {
  if (run.points.length > 1) return [];
  const found = run.stages.map((stage) => [stage, stage.result?.figures.find((figure) => figure.headline)]).filter(([, figure]) => figure);
  return found.slice(-6);
}

function changes() {
  const { changes } = run;
  if (!changes) return null;
  const { parameters, contents, added, removed, figures } = changes;
  const names = (title, list) => list.length > 0 && el("p", {}, el("span", { class: "quiet" }, `${title}: `), list.slice(0, 40).join(", "), list.length > 40 && ` and ${list.length - 40} more`);
  const nothing = ![parameters, contents, added, removed, figures].some((list) => list.length);
  const arrow = (change) => {
    const better = change.better === "neither" || change.value === change.old ? null : (change.better === "higher") === (change.value > change.old);
    return el("span", { class: better == null ? null : better ? "good" : "bad" }, `${change.value > change.old ? "+" : "−"}${format.number(Math.abs(change.value - change.old))}${better == null ? "" : better ? " better" : " worse"}`);
  };
  return [
    el("p", { class: "quiet" }, `Since run ${changes.since} of ${format.time(changes.since_started)}${nothing ? ", nothing." : ":"}`),
    parameters.length > 0 && table("Parameters that differ", [
      { title: "Parameter", value: (change) => change.key, cell: (change) => el("code", {}, change.key) },
      { title: "Before", value: (change) => change.old, cell: (change) => el("code", {}, change.old ?? "–"), wrap: true },
      { title: "Now", value: (change) => change.new, cell: (change) => el("code", {}, change.new ?? "–"), wrap: true },
    ], parameters),
    names("New content", contents), names("New stages", added), names("Stages that are gone", removed),
    figures.length > 0 && details(`${format.count(figures.length, "figure")} moved`, table("Figures that moved", [
      { title: "Figure", value: (change) => `${change.stage}.${change.name}` },
      { title: "Before", value: (change) => change.old, cell: (change) => format.number(change.old), right: true },
      { title: "Now", value: (change) => change.value, cell: (change) => format.figure(change), right: true },
      { title: "Change", value: (change) => change.value - change.old, cell: arrow, right: true },
    ], figures)),
  ];
}

function scores() {
  if (!data.tables.length) return null;
  return data.tables.map(({ columns, titles, rows, notes, ...others }) => {
    // The key of the list of partial results is the table's own.
    const starred = (row, column) => Object.values(row).some((value) => Array.isArray(value) && value.includes(column));
    const cell = (row, column) => (row.figures[column] == null ? "" : `${format.number(Number(row.figures[column].toFixed(2)))}${starred(row, column) ? "*" : ""}`);
    return [
      el("p", { class: "quiet" }, "Published results are on the benchmarks' own data: compare only with runs that measure the same questions."),
      table("Scores beside published ones", [
        { title: "Model", value: (row) => row.model, cell: (row) => (row.published ? `${row.model} (published)` : el("strong", {}, row.model)) },
        ...columns.map((column, index) => ({ title: titles[index], value: (row) => row.figures[column], cell: (row) => cell(row, column), right: true })),
      ], rows, (row) => ({ class: row.published ? "quiet" : null })),
      notes.map((note) => el("p", { class: "quiet small" }, note)),
    ];
  });
}

function source() {
  const { repository, cpu, instructions, threads, system, build } = run.origin ?? {};
  const commit = repository && `${repository.commit.slice(0, 12)}${repository.branch ? ` of ${repository.branch}` : ""}${repository.changed ? ", with changes that are not in it" : ""}`;
  return [run.origin && listing([
    ["file", el("code", {}, run.file)], ["commit", commit], ["imp-flow", `${run.made_by}, ${build}`],
    ["processor", [cpu, instructions.at(-1)].filter(Boolean).join(", ")], ["threads", String(threads)], ["system", system],
  ]), details("The pipeline with everything that it extends", el("pre", { tabindex: "0" }, run.document))];
}
