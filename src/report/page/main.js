// Puts the page together.

function build() {
  charts.length = 0;
  const parts = [
    section("overview", "Overview", overview()),
    section("changes", "What changed", changes()),
    section("stages", "Stages", graph(), stageTable()),
    section("timeline", "Timeline", timeline()),
    section("curves", "Curves", curveSection()),
    section("compared", data.runs.length > 1 ? "Runs compared" : "Points compared", sweep()),
    section("scores", "Scores", scores()),
    section("answers", "Answers", answerSection()),
    section("source", "Pipeline", source()),
  ].filter(Boolean);
  document.getElementById("head").replaceChildren(head());
  document.getElementById("main").replaceChildren(...parts);
  document.getElementById("contents").append(...parts.map((part) => el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
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
