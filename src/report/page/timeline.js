// When the stages of the run ran, and what they waited for.

const MOST_BARS = 200;

// What a stage waited for: its last input, and then a free place on the machine.
function waiting(index) {
  const stage = run.stages[index];
  if (stage.began == null) return null;
  let [ready, last] = [0, null];
  for (const from of Object.values(stage.inputs)) {
    const ended = run.stages[from].ended;
    if (ended != null && ended > ready) [ready, last] = [ended, from];
  }
  const queued = Math.max(0, stage.began - ready);
  const texts = [last != null ? run.stages[last].name : null, queued > 0.05 ? `${last != null ? "then " : ""}${format.duration(queued)} for a free place on the machine` : null];
  return { ready, last, queued, text: texts.filter(Boolean).join(", ") };
}

// What has not ended goes on until now, or until the record of the run was last written.
function endOf(stage) {
  return stage.ended ?? Math.max(stage.began, run.seconds);
}

function timeline() {
  const all = run.stages.map((stage, index) => ({ stage, index, wait: waiting(index) })).filter(({ stage }) => stage.began != null);
  if (!all.length) return null;
  const took = ({ stage }) => endOf(stage) - stage.began;
  const rows = [...all].sort((a, b) => took(b) - took(a)).slice(0, MOST_BARS).sort((a, b) => a.stage.began - b.stage.began);
  const end = Math.max(...rows.map(({ stage }) => endOf(stage)), 0.001);
  const longest = Math.max(...rows.map(({ stage }) => Math.min(stage.name.length, 28)));
  const [left, width, line, top] = [longest * 7.2 + 12, 1160, 22, 26];
  const right = 150;
  const x = (seconds) => left + (seconds / end) * (width - left - right);
  const height = top + rows.length * line + 6;
  const bars = rows.map(({ stage, index, wait }, row) => {
    const y = top + row * line;
    const ended = endOf(stage);
    const time = format.duration(ended - stage.began);
    const memory = format.bytes(stage.result?.peak_memory);
    return svg("g", { class: "row", click: () => openStage(index) },
      svg("title", {}, `${stage.name}: ${time}${memory ? `, ${memory}` : ""}${wait.text ? `; waited for ${wait.text}` : ""}`),
      svg("rect", { x: 0, y, width, height: line, class: "band" }),
      svg("text", { x: left - 10, y: y + 15, "text-anchor": "end" }, clipped(stage.name, 28)),
      wait.queued > 0.05 && svg("line", { x1: x(wait.ready), x2: x(stage.began), y1: y + 11, y2: y + 11, class: "wait" }),
      svg("rect", { x: x(stage.began), y: y + 4, width: Math.max(2, x(ended) - x(stage.began)), height: line - 8, rx: 3, class: `work ${stage.state}` }),
      svg("text", { x: width - right + 12, y: y + 15, class: "more" }, [time, memory].filter(Boolean).join(" · ")));
  });
  const lines = ticks(end).map((seconds) => [
    svg("line", { x1: x(seconds), x2: x(seconds), y1: top - 6, y2: height, class: "tick" }),
    svg("text", { x: x(seconds), y: 14, class: "more", "text-anchor": "middle" }, format.duration(seconds).replace(/\.0+ s/, " s").replace(/ 00 s$/, "")),
  ]);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Timeline of ${rows.length} stages over ${format.duration(end)}; the table below has the same times.`, class: "timeline" }, lines, bars);
  const asTable = table("Timeline", [
    { title: "Stage", value: ({ stage }) => stage.name },
    { title: "Began", value: ({ stage }) => stage.began, cell: ({ stage }) => format.duration(stage.began), right: true },
    { title: "Ended", value: ({ stage }) => stage.ended, cell: ({ stage }) => format.duration(stage.ended), right: true },
    { title: "Took", value: took, cell: (row) => format.duration(took(row)), right: true },
    { title: "Waited for", value: ({ wait }) => wait.text, wrap: true },
    { title: "Peak memory", value: ({ stage }) => stage.result?.peak_memory, cell: ({ stage }) => format.bytes(stage.result?.peak_memory), right: true },
  ], all);
  return [
    el("p", { class: "quiet" }, "Bars are the stages that ran, with time and peak memory at the right. A dotted line is a stage that was ready and waited for a free place.", all.length > rows.length && ` Of ${all.length} stages, the ${rows.length} that took longest are drawn.`),
    el("div", { class: "scroll" }, drawing),
    details("As a table", asTable),
  ];
}

// Some round times from 0 to `end`.
function ticks(end) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400];
  const step = steps.find((step) => end / step <= 8) ?? Math.ceil(end / 8 / 86400) * 86400;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, index) => Number((index * step).toFixed(3)));
}
