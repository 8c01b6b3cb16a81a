// Tables that can be sorted by their columns.

// `columns`: { title, value: row -> number or text, cell?: row -> node or text, right?, about? }. `rowAttributes`: row -> attributes.
function table(caption, columns, rows, rowAttributes = () => ({})) {
  let sorted = null;
  const body = el("tbody");
  const heads = columns.map((column, index) => {
    const button = el("button", { type: "button", title: column.about, click: () => sort(index) }, column.title, el("span", { class: "arrow", "aria-hidden": "true" }));
    return el("th", { scope: "col", class: column.right ? "right" : null }, button);
  });
  const lines = rows.map((row, place) => ({
    row, place,
    line: el("tr", rowAttributes(row), columns.map((column, index) => {
      const cell = (column.cell ?? column.value)(row);
      return el(index ? "td" : "th", { scope: index ? null : "row", class: column.right ? "right" : column.wrap ? "wrap" : null }, cell ?? "");
    })),
  }));

  function sort(index) {
    // First the larger numbers, or the earlier words; then the other way round; then as it was.
    const number = rows.some((row) => typeof columns[index].value(row) === "number");
    const first = number ? -1 : 1;
    sorted = sorted?.index !== index ? { index, way: first } : sorted.way === first ? { index, way: -first } : null;
    show();
  }

  function show() {
    heads.forEach((head, index) => {
      const way = sorted?.index === index ? sorted.way : 0;
      if (way) head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
      head.querySelector(".arrow").textContent = way ? (way > 0 ? " ↑" : " ↓") : "";
    });
    const value = (line) => columns[sorted.index].value(line.row);
    const order = [...lines].sort((a, b) => {
      if (!sorted) return a.place - b.place;
      const [x, y] = [value(a), value(b)];
      // What has no value comes last in any order.
      if (x == null || x === "" || y == null || y === "") return (x == null || x === "") - (y == null || y === "") || a.place - b.place;
      const by = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return sorted.way * by || a.place - b.place;
    });
    body.replaceChildren(...order.map(({ line }) => line));
  }

  show();
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, el("tr", {}, heads)), body));
}

// A table of names and values.
function listing(pairs) {
  return el("dl", {}, pairs.filter(([, value]) => value != null && value !== "").map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
