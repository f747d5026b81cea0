"use strict";
// Makes a report's tables, sheets and curves interactive. All texts are set as text, never as HTML.

const FILTER_FROM = 6; // rows; a shorter table needs no filter

/** An element with attributes, then children (elements or texts). */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function button(text, action, attributes = {}) {
  const element = make("button", { type: "button", ...attributes }, text);
  element.addEventListener("click", action);
  return element;
}

/** What a cell shows, without its note. */
function text(cell) {
  return (cell.firstChild?.textContent ?? "").trim();
}

/** The number that a text starts with ("1,234", "50.0 ± 1.2", "50.0 %"); NaN for any other text. */
function numeric(value) {
  const match = value.replace(/(\d),(?=\d{3})/g, "$1").match(/^(-?(?:inf|\d+(?:\.\d+)?(?:e[-+]?\d+)?))(?: ±.*| %)?$/i);
  return match ? Number(match[1].replace("inf", "Infinity")) : NaN;
}

/** Sort by a column: numbers by value, texts as texts, empty cells and dashes last. */
function sortRows(rows, column, descending) {
  const cells = rows.map((row) => text(row.cells[column]));
  const filled = cells.filter((value) => value && value !== "–");
  const asNumbers = filled.every((value) => !Number.isNaN(numeric(value)));
  const compare = (a, b) => (asNumbers ? numeric(a) - numeric(b) : a.localeCompare(b, undefined, { numeric: true }));
  const missing = (value) => !value || value === "–";
  const order = rows.map((_, index) => index).sort((i, j) => {
    if (missing(cells[i]) || missing(cells[j])) return missing(cells[i]) - missing(cells[j]);
    return descending ? compare(cells[j], cells[i]) : compare(cells[i], cells[j]);
  });
  return order.map((index) => rows[index]);
}

/** Headers that sort: ascending, descending, then as written. */
function makeSortable(table) {
  const body = table.tBodies[0];
  const written = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const sort = () => {
      const next = { ascending: "descending", descending: "" }[header.getAttribute("aria-sort")] ?? "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) header.setAttribute("aria-sort", next);
      body.append(...(next ? sortRows(written, column, next === "descending") : written));
    };
    const sorter = button("", sort);
    sorter.append(...header.childNodes);
    header.append(sorter);
  });
}

function makeFilterable(table, title) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < FILTER_FROM) return;
  const input = make("input", { type: "search", placeholder: "Filter rows", "aria-label": `Filter rows: ${title}` });
  const count = make("span", { role: "status" });
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });
  table.parentElement.before(make("div", { class: "tools" }, input, count));
}

for (const table of document.querySelectorAll("table")) {
  makeSortable(table);
  makeFilterable(table, table.getAttribute("aria-label") ?? "");
}
