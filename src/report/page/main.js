// Puts the page together.

// The parts: id, title, what makes the content.
const PARTS = [
  ["overview", () => "Overview", () => overview()],
  ["changes", () => "What changed", () => changes()],
  ["stages", () => "Stages", () => [graph(), stageTable()]],
  ["timeline", () => "Timeline", () => timeline()],
  ["curves", () => "Curves", () => curveSection()],
  ["compared", () => (data.runs.length > 1 ? "Runs compared" : "Points compared"), () => sweep()],
  ["scores", () => "Scores", () => scores()],
  ["answers", () => "Answers", () => answerSection()],
  ["source", () => "Pipeline", () => source()],
];

// Makes a part. Nothing if there is nothing in it.
function made([id, title, content]) {
  return section(id, title(), content());
}

function build() {
  const parts = PARTS.map(made).filter(Boolean);
  document.getElementById("head").replaceChildren(head());
  document.getElementById("main").replaceChildren(...parts);
  listContents();
}

// Links to the parts that there are.
function listContents() {
  const parts = [...document.querySelectorAll("#main > section")];
  const links = el("nav", {}, parts.map((part) => el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
  const contents = document.getElementById("contents");
  if (contents.textContent !== links.textContent || contents.childElementCount !== parts.length) contents.replaceChildren(...links.childNodes);
}

// `#stage=NAME` opens a stage.
function openNamed() {
  const name = location.hash.startsWith("#stage=") ? decodeURIComponent(location.hash.slice(7)) : null;
  const index = run.stages.findIndex((stage) => stage.name === name);
  if (index >= 0) openStage(index);
}

build();
openNamed();
addEventListener("hashchange", openNamed);
