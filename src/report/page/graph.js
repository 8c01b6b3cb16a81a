// The graph of stages: boxes to click, which the table of stages below repeats.

const MOST_ZOOM = 1.25;

function graph() {
  const { width, height, size: [boxWidth, boxHeight], corners, edges } = run.drawing;
  const paths = edges.map((edge) => svg("path", { d: edge.path, class: "edge" }));
  const boxes = run.stages.map((stage, index) => {
    const [x, y] = corners[index];
    const time = stage.ended != null ? format.duration(stage.ended - stage.began) : stage.state;
    // In a sweep, `finetune@rank=8` is drawn as `finetune`, and `rank=8` below it.
    const [, base] = stage.points[0];
    const label = pointOf(stage);
    const node = svg("g", {
      class: `node ${stage.state.replace(" ", "-")}`, role: "button", tabindex: index ? "-1" : "0", "data-stage": stage.name,
      "aria-label": `${stage.name}, ${stage.kind}, ${stage.state}${stage.ended != null ? `, ${time}` : ""}`,
      click: () => openStage(index), keydown: (event) => onKey(event, index), pointerenter: () => mark(index), pointerleave: () => mark(null),
      focus: () => mark(index), blur: () => mark(null),
    },
      svg("title", {}, `${stage.name} (${stage.kind}): ${stage.state}`),
      svg("rect", { x, y, width: boxWidth, height: boxHeight, rx: 7 }),
      svg("text", { x: x + 12, y: y + 17, class: "name" }, clipped(label == null ? stage.name : base, 20)),
      svg("text", { x: x + 12, y: y + 32, class: "more" }, clipped(label ?? stage.kind, label == null ? 14 : 22)),
      svg("text", { x: x + boxWidth - 12, y: y + 32, class: "more", "text-anchor": "end" }, [MARKS[stage.state] ?? "–", label == null && time].filter(Boolean).join(" ")));
    return node;
  });

  // Enter and space open a stage. Arrows go to its inputs and users, up and down in the order of execution.
  function onKey(event, index) {
    const users = edges.filter((edge) => edge.from === index).map((edge) => edge.to);
    const inputs = edges.filter((edge) => edge.to === index).map((edge) => edge.from);
    const next = { ArrowRight: users[0], ArrowLeft: inputs[0], ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: boxes.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") openStage(index);
    else if (next != null && boxes[next]) {
      boxes.forEach((box) => box.setAttribute("tabindex", "-1"));
      boxes[next].setAttribute("tabindex", "0");
      boxes[next].focus();
    } else return;
    event.preventDefault();
  }

  // Marks a stage, its inputs and its users.
  function mark(index) {
    paths.forEach((path, place) => path.classList.toggle("marked", index != null && (edges[place].from === index || edges[place].to === index)));
  }

  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Graph of the stages. Arrow keys move, Enter opens a stage." }, paths, boxes);
  drawing.style.maxWidth = `${width * MOST_ZOOM}px`;
  // Small enough to see it all, but not so small that it can't be read: then it scrolls.
  drawing.style.minWidth = `${Math.min(width, Math.max(640, width * 0.62))}px`;
  const view = el("div", { class: "graph scroll", tabindex: "-1" }, drawing);
  return [points(boxes), view];
}

// In a sweep: a choice of the point whose stages stand out.
function points(boxes) {
  if (run.points.length < 2) return null;
  const options = [["", "all"], ...run.points.map((point, index) => [String(index), point.label])];
  const show = (chosen) => boxes.forEach((box, index) => {
    const has = chosen === "" || run.stages[index].points.some(([point]) => String(point) === chosen);
    box.classList.toggle("dim", !has);
  });
  return el("div", { class: "bar" }, choice("Point", options, "", show));
}

function stageTable() {
  const headline = (stage) => (stage.result?.figures ?? []).filter((figure) => figure.headline).map((figure) => `${format.words(figure.name)} ${format.figure(figure)}`).join(", ");
  return table("Stages", [
    { title: "Stage", value: (stage) => stage.name, cell: (stage) => el("button", { type: "button", class: "link", click: () => openStage(placeOf(stage)) }, stage.name) },
    { title: "Kind", value: (stage) => stage.kind },
    { title: "State", value: (stage) => stage.state, cell: (stage) => badge(stage.state) },
    { title: "Why it last ran", value: (stage) => reason(stage), wrap: true },
    { title: "Time", about: "How long it took when it last ran", value: (stage) => stage.result?.seconds, cell: (stage) => format.duration(stage.result?.seconds), right: true },
    { title: "Peak memory", value: (stage) => stage.result?.peak_memory, cell: (stage) => format.bytes(stage.result?.peak_memory), right: true },
    { title: "Size", value: (stage) => stage.result?.output.bytes, cell: (stage) => format.bytes(stage.result?.output.bytes), right: true },
    { title: "Result", value: headline, wrap: true },
  ], run.stages);
}

function reason(stage) {
  const text = stage.failure ?? stage.result?.reason ?? "";
  return { new: "first run", forced: "--force" }[text] ?? text;
}
