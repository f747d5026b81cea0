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
    for (const row of rows) {
      const shown = [...row.cells].map(text).join(" ").toLowerCase();
      row.hidden = !words.every((word) => shown.includes(word));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });
  table.parentElement.before(make("div", { class: "tools" }, input, count));
}

for (const table of document.querySelectorAll("table")) {
  makeSortable(table);
  makeFilterable(table, table.getAttribute("aria-label") ?? "");
}

const dialog = make("dialog", { tabindex: -1 });
document.body.append(dialog);

/** Show content above the page, below a row of buttons; Escape or the first button closes it. */
function show(label, buttons, ...content) {
  const held = document.activeElement.textContent;
  const tools = make("div", { class: "tools" }, button("Close", () => dialog.close()), ...buttons);
  dialog.onkeydown = null;
  dialog.setAttribute("aria-label", label);
  dialog.replaceChildren(tools, ...content);
  if (!dialog.open) dialog.showModal();
  else ([...tools.children].find((one) => one.textContent === held) ?? dialog).focus(); // its button was replaced
}

/** The digit that a key event stands for; -1 for any other key, and where digits are typed. */
function digit(event) {
  const other = event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT";
  return !other && /^\d$/.test(event.key) ? Number(event.key) : -1;
}

/** Make an image a button that opens it in its full size. */
function makeZoomable(image) {
  const zoom = button("", () => show(image.alt, [], image.cloneNode()), { class: "zoom", "aria-label": `Enlarge: ${image.alt}` });
  image.replaceWith(zoom);
  zoom.append(image);
  return zoom;
}

function crop(image, label, x, y, width, height) {
  const canvas = make("canvas", { width, height, role: "img", "aria-label": label });
  canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
  return canvas;
}

/** One button per view, the keys 0 to 9 for the first ones. */
function viewButtons(views, choose) {
  return views.map((view, index) => button(view, () => choose(index), index < 10 ? { title: `key ${index}` } : {}));
}

function press(buttons, current) {
  buttons.forEach((one, index) => one.setAttribute("aria-pressed", index === current));
}

/** One menu per tag that differs between the images. */
function menus(columns, changed) {
  const names = [...new Set(columns.flatMap((column) => Object.keys(column.tags)))];
  const values = (name) => [...new Set(columns.map((column) => column.tags[name] ?? ""))];
  return names.filter((name) => values(name).length > 1).map((name) => {
    const options = values(name).sort().map((value) => make("option", { value }, value || "(none)"));
    const menu = make("select", { name, "aria-label": name }, make("option", { value: "*" }, `${name}: all`), ...options);
    menu.addEventListener("change", changed);
    return menu;
  });
}

/** The images of a contact sheet one by one: choose the view, filter them, open one large. View 0 is the whole sheet. */
function makeGallery(figure, image, zoom) {
  const layout = JSON.parse(figure.dataset.layout);
  const views = ["whole sheet", ...layout.views];
  const grid = make("div", { class: "grid", hidden: "" });
  const count = make("span", { role: "status" });
  const tile = (column, view) =>
    crop(image, `${views[view]}: ${column.caption}`, column.x, column.y + (view - 1) * layout.step, ...layout.size);
  const caption = (column, tag) =>
    make(tag, { class: { correct: "right", wrong: "wrong" }[column.tags.prediction] ?? "" }, column.caption);
  let view = 0;
  const legend = layout.legend ? [crop(image, "Legend of the sheet", ...layout.legend)] : [];
  legend.forEach((canvas) => canvas.classList.add("legend"));

  const shown = () => layout.columns.filter((column) =>
    filters.every((menu) => menu.value === "*" || (column.tags[menu.name] ?? "") === menu.value));
  const open = (place, current) => {
    const columns = shown();
    const column = columns[place];
    const move = (by) => open((place + by + columns.length) % columns.length, current);
    const buttons = viewButtons(views, (index) => open(place, index));
    press(buttons, current);
    const steps = [button("← previous", () => move(-1)), button("next →", () => move(1))];
    show(column.caption, [...buttons.slice(1), ...steps, `${place + 1} of ${columns.length}`],
      tile(column, current), caption(column, "p"));
    dialog.onkeydown = (event) => {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") move(event.key === "ArrowLeft" ? -1 : 1);
      if (digit(event) > 0 && digit(event) < views.length) open(place, digit(event));
    };
  };
  const draw = (next) => {
    view = next;
    press(switcher, view);
    const columns = shown();
    count.textContent = `${columns.length} of ${layout.columns.length} images`;
    zoom.hidden = view > 0;
    [grid, ...legend].forEach((element) => (element.hidden = view === 0));
    if (view === 0) return;
    grid.replaceChildren(...columns.map((column, place) => {
      const card = button("", () => open(place, view));
      card.append(tile(column, view), caption(column, "span"));
      return card;
    }));
  };
  const switcher = viewButtons(views, draw);
  const filters = menus(layout.columns, () => draw(view || 1));
  figure.prepend(make("div", { class: "tools" }, ...switcher, ...filters, count));
  zoom.after(grid, ...legend);
  figure.addEventListener("keydown", (event) => {
    if (digit(event) >= 0 && digit(event) < views.length) draw(digit(event));
  });
  draw(0);
}

/** What is drawn at a place of the image: the panel's nearest x, and each line's value there or at its own nearest x. */
function valuesAt(panels, x, y) {
  const panel = panels.find(({ box: [left, top, right, bottom] }) => x >= left && x <= right && y >= top && y <= bottom);
  if (!panel) return null;
  const [left, top, right, bottom] = panel.box;
  const [from, to] = panel.limits;
  const value = from + ((x - left) / (right - left)) * (to - from);
  const nearest = (rows) => rows.reduce((a, b) => (Math.abs(panel.at[b] - value) < Math.abs(panel.at[a] - value) ? b : a));
  const rows = panel.rows.map((_, row) => row);
  const here = nearest(rows);
  const lines = panel.names.slice(1).map((name, index) => {
    const row = nearest(rows.filter((one) => panel.rows[one][index + 1]));
    return `${name}: ${panel.rows[row][index + 1]}${row === here ? "" : ` (at ${panel.rows[row][0]})`}`;
  });
  const mark = left + ((panel.at[here] - from) / (to - from)) * (right - left);
  return { text: [`${panel.names[0]} ${panel.rows[here][0]}`, ...lines].join("\n"), mark, top, bottom };
}

/** Show the values of curves under the pointer; the table below the image has them for keyboards and screen readers. */
function makeHover(tables, image, zoom) {
  const panels = tables.map((table) => ({
    ...JSON.parse(table.dataset.panel),
    names: [...table.tHead.rows[0].cells].map((cell) => cell.textContent),
    rows: [...table.tBodies[0].rows].map((row) => [...row.cells].map(text)),
  }));
  const tip = make("div", { class: "values", "aria-hidden": "true", hidden: "" });
  const mark = make("div", { class: "mark", hidden: "" });
  zoom.classList.add("curves");
  zoom.append(tip, mark);
  const move = (event) => {
    const frame = image.getBoundingClientRect();
    const scale = frame.width / image.naturalWidth;
    const found = valuesAt(panels, (event.clientX - frame.left) / scale, (event.clientY - frame.top) / scale);
    tip.hidden = mark.hidden = !found;
    if (!found) return;
    tip.textContent = found.text;
    const x = found.mark * scale;
    Object.assign(mark.style, { left: `${x}px`, top: `${found.top * scale}px`, height: `${(found.bottom - found.top) * scale}px` });
    const left = x + 10 + tip.offsetWidth > frame.width ? Math.max(0, x - 10 - tip.offsetWidth) : x + 10;
    Object.assign(tip.style, { left: `${left}px`, top: `${found.top * scale}px` });
  };
  zoom.addEventListener("pointermove", move);
  zoom.addEventListener("pointerleave", () => (tip.hidden = mark.hidden = true));
}

for (const figure of document.querySelectorAll("figure")) {
  const image = figure.querySelector("img");
  const zoom = makeZoomable(image);
  const tables = [...figure.querySelectorAll("table[data-panel]")];
  if (tables.length) makeHover(tables, image, zoom);
  if (figure.dataset.layout) image.decode().then(() => makeGallery(figure, image, zoom));
}
