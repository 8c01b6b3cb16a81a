// What a person did to a part of the page, so that its next version has it, too: what is open, chosen, sorted, scrolled, focused.

const STATEFUL = "details, select, input, button, .scroll, pre, th, [tabindex]";

// The elements of a part that have a state, each under a name that its next version has, too. Numbers in names change.
function named(part) {
  const [found, counts] = [new Map(), new Map()];
  for (const element of part.querySelectorAll(STATEFUL)) {
    const label = element.dataset.stage ?? element.dataset.name ?? element.getAttribute("aria-label") ?? element.querySelector("summary")?.textContent ?? (element.matches("button, th") ? element.textContent : "");
    const around = element.parentElement.closest("figure")?.dataset.name ?? "";
    const name = `${element.tagName} ${around} ${label.replace(/[\d.,]+|[↑↓]/g, "").trim()}`;
    const count = counts.get(name) ?? 0;
    counts.set(name, count + 1);
    found.set(`${name} ${count}`, element);
  }
  return found;
}

function stateOf(element) {
  return {
    open: element.open, value: element.value, left: element.scrollLeft, top: element.scrollTop,
    // Who looks at the end of a log wants to see its next lines.
    atEnd: element.tagName === "PRE" && element.scrollTop > 0 && element.scrollTop + element.clientHeight > element.scrollHeight - 4,
    sort: element.getAttribute("aria-sort"),
    focus: element === document.activeElement && { from: element.selectionStart, to: element.selectionEnd },
  };
}

// Notes the states in a part. Returns what gives them to its next version, which must be on the page by then.
function keep(part) {
  const states = new Map([...named(part)].map(([name, element]) => [name, stateOf(element)]));
  return (next) => {
    // A sort moves what is named, so it comes first.
    for (const [name, element] of named(next)) if (element.tagName === "TH") sortAs(element, states.get(name)?.sort);
    for (const [name, element] of named(next)) if (states.has(name)) restore(element, states.get(name));
  };
}

function sortAs(head, sort) {
  for (let clicks = 0; sort && clicks < 2 && head.getAttribute("aria-sort") !== sort; clicks += 1) head.querySelector("button")?.click();
}

function restore(element, { open, value, left, top, atEnd, focus }) {
  if (element.tagName === "DETAILS") element.open = open;
  if (element.matches("select, input") && element.value !== value) {
    const before = element.value;
    element.value = value;
    // A choice that is gone can't be made again.
    if (element.value !== value) element.value = before;
    else element.dispatchEvent(new Event(element.matches("select") ? "change" : "input"));
  }
  if (focus) {
    element.focus({ preventScroll: true });
    if (focus.from != null && element.setSelectionRange) element.setSelectionRange(focus.from, focus.to);
  }
  element.scrollLeft = left;
  element.scrollTop = atEnd ? element.scrollHeight : top;
}

// Whether a person is at something in a part that its next version would take away: marked text, an open list of choices.
const LIST_TIME = 15_000;
let lastTouch = 0;
for (const name of ["pointerdown", "keydown"]) addEventListener(name, () => { lastTouch = Date.now(); }, true);
addEventListener("change", () => { lastTouch = 0; }, true);
function isBusy(part) {
  const marked = getSelection();
  if (!marked.isCollapsed && part.contains(marked.anchorNode)) return true;
  const { activeElement } = document;
  return activeElement?.tagName === "SELECT" && part.contains(activeElement) && Date.now() - lastTouch < LIST_TIME;
}

// While a button of the mouse is down, something is dragged.
let isDragging = false;
addEventListener("pointerdown", () => { isDragging = true; }, true);
for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => { isDragging = false; }, true);
