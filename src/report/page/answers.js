// What the models answered: filters, and two models side by side.

const MORE = 24;
// What a person chose, for the next version of this part. Sets are known by their names.
let lastAnswers = {};

function answerSection() {
  if (!data.answers.length) return null;
  const sets = data.answers;
  const names = sets.map((set) => [data.runs.length > 1 && runName(data.runs[set.run]), data.runs[set.run].stages[set.stage].name].filter(Boolean).join(", "));
  const view = { verdict: "all", category: "", words: "", limit: MORE, ...lastAnswers, set: Math.max(0, names.indexOf(lastAnswers.set)), other: names.indexOf(lastAnswers.other) };
  const note = () => { lastAnswers = { ...view, set: names[view.set], other: names[view.other] }; };
  const [bar, head, list] = [el("div", { class: "bar" }), el("div", { class: "tally" }), el("div", { class: "answers" })];
  const status = el("p", { class: "quiet", role: "status" });
  const suffix = el("p", { class: "quiet" });
  const more = el("button", { type: "button", click: () => { view.limit += MORE; show(); } }, "Show more");

  function change(values) {
    Object.assign(view, { limit: MORE }, values);
    if (view.other === view.set) view.other = -1;
    controls();
    show();
  }

  // The controls are made anew, since their choices depend on each other; the focus stays where it was.
  function controls() {
    const set = sets[view.set];
    const focused = [...bar.querySelectorAll("select, input")].indexOf(document.activeElement);
    const others = sets.map((_, index) => index).filter((index) => index !== view.set && areSame(set, sets[index]));
    const verdicts = view.other < 0
      ? [["all", "all"], ["wrong", "wrong"], ["right", "right"], ["open", "not scored"]]
      : [["all", "all"], ["differ", "that differ"], ["first", `only ${names[view.set]} is right`], ["second", `only ${names[view.other]} is right`], ["neither", "both wrong"]];
    if (!verdicts.some(([value]) => value === view.verdict)) view.verdict = view.other < 0 ? "all" : "differ";
    const categories = set.categories.filter((category) => category.name);
    bar.replaceChildren(...[
      choice("Answers of", names.map((name, index) => [String(index), name]), String(view.set), (value) => change({ set: Number(value), category: "" })),
      others.length && choice("beside", [["-1", "no other"], ...others.map((index) => [String(index), names[index]])], String(view.other), (value) => change({ other: Number(value), verdict: value === "-1" ? "all" : "differ" })),
      choice("Show", verdicts, view.verdict, (value) => change({ verdict: value })),
      categories.length > 1 && choice("Category", [["", "all"], ...categories.map((category) => [category.name, category.name])], view.category, (value) => change({ category: value })),
      search(),
    ].filter(Boolean));
    if (focused >= 0) bar.querySelectorAll("select, input")[focused]?.focus();
    head.replaceChildren(...(categories.length > 1 || set.mean != null ? [tally(set, categories)] : []));
  }

  function search() {
    const input = el("input", { type: "search", value: view.words, input: () => { view.words = input.value; view.limit = MORE; show(); } });
    return el("label", { class: "field" }, el("span", {}, "Search"), input);
  }

  function show() {
    note();
    const set = sets[view.set];
    const beside = view.other < 0 ? null : partners(set, sets[view.other]);
    const words = view.words.toLowerCase();
    const found = set.rows.map((row) => ({ row, other: beside?.get(key(row)) }))
      .filter(({ row, other }) => (!beside || other) && (!view.category || row.category === view.category)
        && fits(view.verdict, row, other) && (!words || `${row.question} ${row.answer} ${row.truth.join(" ")}`.toLowerCase().includes(words)));
    const shown = found.slice(0, view.limit);
    const cut = set.rows.length < set.total ? ` Of ${format.count(set.total, "answer")}, ${set.rows.length.toLocaleString("en")} are in this page, the same for all models; imp-flow show --answers lists all.` : "";
    status.textContent = `${format.count(found.length, "answer")}${found.length > shown.length ? `, of which ${shown.length} are shown` : ""}.${cut}`;
    const common = ending(set);
    suffix.textContent = common && `All of them end with: ${common.trim()}`;
    list.replaceChildren(...shown.map(({ row, other }) => card(row, other, names[view.set], names[view.other], common)));
    more.hidden = found.length <= shown.length;
  }

  controls();
  show();
  return [bar, head, status, suffix, list, more];
}

// How all questions end: the instruction that a benchmark adds to each.
function ending(set) {
  const [first] = set.rows;
  const at = set.rows.length > 1 ? first.question.indexOf("\n") : -1;
  const text = at < 0 ? "" : first.question.slice(at);
  return text && set.rows.every((row) => row.question.endsWith(text)) ? text : "";
}

// The same question has the same id and text for every model.
const key = (row) => `${row.id}\n${row.question}`;

// The rows of another set to the same questions, by question.
const known = new WeakMap();
function partners(set, other) {
  const ofSet = known.get(set) ?? known.set(set, new Map()).get(set);
  if (!ofSet.has(other)) {
    const rows = new Map(other.rows.map((row) => [key(row), row]));
    ofSet.set(other, new Map(set.rows.filter((row) => rows.has(key(row))).map((row) => [key(row), rows.get(key(row))])));
  }
  return ofSet.get(other);
}

// Whether two models answered the same questions. Some may be by chance.
function areSame(set, other) {
  return partners(set, other).size * 2 >= Math.min(set.rows.length, other.rows.length);
}

// Soft accuracies lie between 0 and 1.
function isRight(row) {
  return row.score == null ? null : row.score >= 0.5;
}

function fits(verdict, row, other) {
  const right = isRight(row);
  switch (verdict) {
    case "wrong": return right === false;
    case "right": return right === true;
    case "open": return right == null;
    case "differ": return row.answer.trim() !== other.answer.trim();
    case "first": return right === true && isRight(other) === false;
    case "second": return right === false && isRight(other) === true;
    case "neither": return right === false && isRight(other) === false;
    default: return true;
  }
}

function tally(set, categories) {
  const rows = [...categories, ...(set.mean != null ? [{ name: "all", total: set.total, right: set.right, mean: set.mean }] : [])];
  return details(`By category: ${set.mean == null ? "not scored" : `${set.right} of ${set.scored} right, mean score ${format.percent(set.mean)}`}`, table("Scores by category", [
    { title: "Category", value: (row) => row.name || "(none)" },
    { title: "Answers", value: (row) => row.total, right: true },
    { title: "Right", value: (row) => row.right, right: true },
    { title: "Mean score", value: (row) => row.mean, cell: (row) => format.percent(row.mean), right: true },
  ], rows));
}

function card(row, other, name, otherName, common) {
  const image = row.image ?? other?.image;
  return el("article", { class: "answer" },
    image != null ? el("img", { src: data.images[image], alt: "The image of the question" }) : el("div", { class: "no-image", "aria-hidden": "true" }),
    el("div", {},
      el("p", { class: "question" }, common ? row.question.slice(0, -common.length) : row.question),
      said(row, other && name),
      other && said(other, otherName),
      row.truth.length > 0 && el("p", {}, el("span", { class: "quiet" }, "truth "), row.truth.join(" | ")),
      el("p", { class: "quiet small" }, [row.id, row.category].filter(Boolean).join(" · "))));
}

function said(row, name) {
  const right = isRight(row);
  const word = right == null ? "not scored" : right ? "right" : "wrong";
  const partly = row.score > 0 && row.score < 1 ? ` ${format.number(row.score)}` : "";
  return el("p", { class: "said" }, el("span", { class: `verdict ${word.replace(" ", "-")}` }, `${{ right: "✓", wrong: "✕" }[word] ?? "–"} ${word}${partly}`), ` ${row.answer || "(nothing)"}`, name && el("span", { class: "quiet small" }, `  ${name}`));
}
