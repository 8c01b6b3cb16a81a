// Follows the run: gets newer data and shows what has changed. What has not changed stays as it is.

const EVERY = 2000;
// After the end of a run, another may follow.
const SELDOM = 5000;

// Each part as it was made, before a person did anything to it.
const asMade = new Map();
const blank = document.createElement("div");
const connection = el("p", { class: "quiet small", role: "status", id: "connection" });

// Puts `next` in the place of a part, unless it shows the same. Both may be nothing.
function exchange(id, now, next, put) {
  if (now && isBusy(now)) return;
  const same = now && next && asMade.get(id)?.isEqualNode(next);
  if (same || (!now && !next)) return;
  asMade.set(id, (next ?? blank).cloneNode(true));
  const restore = now ? keep(now) : () => {};
  put(next);
  if (next) restore(next);
}

function update(next) {
  const [{ id }, place] = [run, whereTheReaderIs()];
  data = next;
  run = data.runs.find((of) => of.id === id) ?? data.runs[0];
  document.title = `${run.pipeline} · imp-flow`;
  PARTS.forEach(updatePart);
  exchangeInside("head", document.getElementById("head"), [head()]);
  listContents();
  showConnection();
  updateDialog();
  place();
}

function updatePart(part) {
  const [id] = part;
  const now = document.getElementById(id);
  if (id === "curves") {
    // The charts stay, and only their curves grow, unless there are others. Making those takes what the old ones know.
    if (now && (isBusy(now) || updateCurves())) return;
    asMade.delete(id);
  }
  const next = made(part);
  exchange(id, now, next, () => {
    if (!next) return now.remove();
    if (now) return now.replaceWith(next);
    // Before the next part that is there.
    const after = PARTS.slice(PARTS.indexOf(part) + 1).map(([other]) => document.getElementById(other)).find(Boolean);
    document.getElementById("main").insertBefore(next, after ?? null);
  });
}

// The same for what is in an element that stays.
function exchangeInside(id, element, children) {
  const next = el("div", {}, children);
  if (asMade.get(id)?.isEqualNode(next) || isBusy(element)) return;
  asMade.set(id, next.cloneNode(true));
  const restore = keep(element);
  element.replaceChildren(...next.childNodes);
  restore(element);
}

function updateDialog() {
  const stage = run.stages.find(({ name }) => name === dialog.dataset.name);
  if (!dialog.open || !stage) return;
  const top = dialog.scrollTop;
  exchangeInside(`stage ${stage.name}`, dialog, aboutStage(stage));
  dialog.scrollTop = top;
}

// What the reader sees at the top stays there, whatever grows above it.
function whereTheReaderIs() {
  const seen = [...document.querySelectorAll("#main > section")].find((part) => part.getBoundingClientRect().bottom > 0);
  const top = seen?.getBoundingClientRect().top;
  return () => {
    const now = seen && document.getElementById(seen.id)?.getBoundingClientRect().top;
    if (now != null && scrollY > 0 && now !== top) scrollBy({ top: now - top, behavior: "instant" });
  };
}

function showConnection() {
  if (!connection.isConnected) document.querySelector("#head h1").after(connection);
}

let tag = null;
// Newer data; `null` if there are none. Fails if nothing answers.
async function newer() {
  const answer = await fetch("data", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
  if (answer.status === 304) return null;
  if (!answer.ok) throw new Error(answer.statusText);
  const next = await answer.json();
  tag = answer.headers.get("etag");
  return next;
}

async function follow() {
  // Nobody sees a page in the background; it is brought up to date when it comes to the front.
  if (document.hidden || isDragging) return setTimeout(follow, EVERY);
  let next = null;
  let isThere = true;
  try {
    next = await newer();
  } catch {
    isThere = false;
  }
  connection.textContent = isThere ? "This page follows the run." : "No connection to imp-flow watch: this page is as it was when that ended.";
  try {
    if (next) update(next);
  } finally {
    // Whatever goes wrong once, later data may be shown.
    setTimeout(follow, isThere && run.state === "running" ? EVERY : SELDOM);
  }
}

for (const part of PARTS) {
  const shown = document.getElementById(part[0]);
  if (shown) asMade.set(part[0], shown.cloneNode(true));
}
asMade.set("head", el("div", {}, head()));
showConnection();
follow();
