// The points of a sweep, or several runs: parallel coordinates, and a table.

// One row for each point of each run: its values, and the figures of its stages.
function compared() {
  const rows = data.runs.flatMap((of) => of.points.map((point, index) => {
    const figures = new Map();
    for (const stage of of.stages) {
      const owner = stage.points.find(([owner]) => owner === index);
      if (!owner) continue;
      for (const figure of stage.result?.figures ?? []) figures.set(`${owner[1]}.${figure.name}`, figure);
    }
    const label = [data.runs.length > 1 && runName(of), point.label].filter(Boolean).join(", ");
    return { label: label || runName(of), values: new Map(point.values), figures, configs: configs(of, index) };
  }));
  if (data.runs.length > 1) differences(rows);
  return rows;
}

// The configuration of all stages of a point, by `stage.key`.
function configs(of, index) {
  const all = new Map();
  for (const stage of of.stages) {
    const owner = stage.points.find(([owner]) => owner === index);
    if (!owner) continue;
    all.set(`${owner[1]}.seed`, String(stage.seed));
    for (const [key, value] of Object.entries(stage.config)) all.set(`${owner[1]}.${key}`, value);
  }
  return all;
}

// Between runs, whatever differs in the configurations is a parameter.
function differences(rows) {
  const keys = new Set(rows.flatMap((row) => [...row.configs.keys()]));
  for (const key of keys) {
    if (new Set(rows.map((row) => row.configs.get(key))).size > 1) {
      rows.forEach((row) => row.values.set(key, row.configs.get(key) ?? "default"));
    }
  }
}

function sweep() {
  const rows = compared();
  if (rows.length < 2) return null;
  const parameters = [...new Set(rows.flatMap((row) => [...row.values.keys()]))];
  const all = new Map(rows.flatMap((row) => [...row.figures]));
  const differs = (name) => new Set(rows.map((row) => row.figures.get(name)?.value)).size > 1;
  const figures = [...all.keys()].filter((name) => all.get(name).headline && differs(name));
  const lines = new Map();
  const show = (row) => lines.forEach((line, of) => {
    line.classList.toggle("marked", of === row);
    line.classList.toggle("dim", row != null && of !== row);
  });
  return [
    el("div", { class: "scroll" }, parallel(rows, parameters, figures, lines, show)),
    sweepTable(rows, parameters, figures.length ? figures : [...all.keys()], all, show),
  ];
}

function sweepTable(rows, parameters, figures, all, show) {
  const best = new Map(figures.map((name) => [name, bestOf(rows, name, all.get(name).better)]));
  return table("Points", [
    { title: "Point", value: (row) => row.label },
    ...parameters.map((name) => ({ title: name, value: (row) => numeric(row.values.get(name)), cell: (row) => row.values.get(name) ?? "", right: true })),
    ...figures.map((name) => ({
      title: name, about: all.get(name).unit, value: (row) => row.figures.get(name)?.value, right: true,
      cell: (row) => {
        const figure = row.figures.get(name);
        const text = figure ? format.number(figure.value) : "";
        return figure && figure.value === best.get(name) ? el("strong", {}, text, el("span", { class: "hidden" }, " (best)")) : text;
      },
    })),
  ], rows, (row) => ({ pointerenter: () => show(row), pointerleave: () => show(null) }));
}

function numeric(text) {
  const value = Number(text);
  return text == null || text === "" || Number.isNaN(value) ? text : value;
}

function bestOf(rows, name, better) {
  const values = rows.map((row) => row.figures.get(name)?.value).filter((value) => value != null);
  if (better === "neither" || new Set(values).size < 2) return null;
  return values.reduce((a, b) => ((better === "higher") === (b > a) ? b : a));
}

// A vertical axis for each parameter and figure, and a line for each point, coloured by the last axis.
function parallel(rows, parameters, figures, lines, show) {
  const axes = [
    ...parameters.map((name) => axis(name, (row) => numeric(row.values.get(name)))),
    ...figures.map((name) => axis(name, (row) => row.figures.get(name)?.value)),
  ];
  const [height, top, left] = [300, 40, 90];
  const gap = Math.max(110, Math.min(220, 1000 / Math.max(1, axes.length - 1)));
  const width = left * 2 + gap * (axes.length - 1);
  const y = (share) => top + (1 - share) * (height - top - 24);
  const x = (index) => left + index * gap;

  function axis(name, of) {
    const values = rows.map(of).filter((value) => value != null);
    if (values.every((value) => typeof value === "number")) {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      // Values over several powers of ten have an axis of powers.
      const scale = low > 0 && high / low >= 50 ? Math.log : (value) => value;
      const share = (value) => (high > low ? (scale(value) - scale(low)) / (scale(high) - scale(low)) : 0.5);
      const marks = high > low ? [low, high] : [low];
      return { name, of, share, marks: marks.map((value) => [share(value), format.number(value)]) };
    }
    const words = [...new Set(values.map(String))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const share = (value) => (words.length > 1 ? words.indexOf(String(value)) / (words.length - 1) : 0.5);
    return { name, of, share, marks: words.slice(0, 12).map((word) => [share(word), word]) };
  }

  const last = axes.at(-1);
  const drawn = rows.map((row) => {
    const points = axes.map((axis, index) => ({ value: axis.of(row), index, axis })).filter(({ value }) => value != null);
    const value = last?.of(row);
    const shade = value == null ? 0 : Math.round(last.share(value) * 4);
    const line = svg("polyline", { points: points.map(({ value, index, axis }) => `${x(index)},${y(axis.share(value))}`).join(" "), class: `point s${shade}`, pointerenter: () => show(row), pointerleave: () => show(null) },
      svg("title", {}, row.label));
    lines.set(row, line);
    return line;
  });
  const frame = axes.map((axis, index) => [
    svg("line", { x1: x(index), x2: x(index), y1: top, y2: height - 24, class: "axis" }),
    svg("text", { x: x(index), y: 22, "text-anchor": "middle", class: "name" }, clipped(axis.name.replace(/^stages\./, ""), 24), svg("title", {}, axis.name)),
    axis.marks.map(([share, text]) => svg("text", { x: x(index) + 7, y: y(share) + 4, class: "more" }, clipped(text, 14))),
  ]);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "parallel", "aria-label": `Parallel coordinates of ${rows.length} points; the table below has the same values.` }, drawn, frame);
  drawing.style.minWidth = `${Math.min(width, 900)}px`;
  drawing.style.maxWidth = `${width}px`;
  return drawing;
}
