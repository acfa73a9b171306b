"use strict";
// Everything that came from a model is put in as text, never as markup.
function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function withMarks(parent, text, forms) {
  const wanted = new Set(forms);
  for (const piece of text.split(/([\p{L}']+)/u)) {
    parent.append(wanted.has(piece.toLowerCase()) ? element("mark", "", piece) : piece);
  }
}

function badge(fine, text) {
  return element("span", "badge " + (fine ? "yes" : "no"), (fine ? "✓ " : "✗ ") + text);
}

function storyCell(cell, row) {
  const td = element("td");
  if (!cell) return td;
  withMarks(td, cell.text, row.forms);
  const badges = element("div", "badges");
  if (cell.right !== null) {
    badges.append(badge(cell.right, cell.right ? "right" : "not " + row.gold));
    td.append(badges);
    return td;
  }
  if (row.words.length) {
    badges.append(badge(!cell.missing.length, cell.missing.length ? "lacks " + cell.missing.join(", ") : "words"));
  }
  badges.append(badge(cell.ends, cell.ends ? "ends" : "no end"));
  if (cell.loops) badges.append(badge(false, "loops"));
  td.append(badges);
  return td;
}

function isFine(cell) {
  if (!cell) return false;
  return cell.right !== null ? cell.right : !cell.missing.length && cell.ends && !cell.loops;
}

function promptCell(row) {
  const td = element("td");
  const words = row.words.join(", ");
  td.append(element("span", words ? "words" : "question", words || row.prompt));
  const id = element("span", "sub", row.id);
  id.title = row.prompt;
  td.append(id);
  return td;
}

// A table with a search box, one more filter, and pages.
function browser(section, rows, options) {
  let page = 0;
  const hidden = new Set(options.hidden);
  const search = element("input");
  search.type = "search";
  search.placeholder = "Search words and texts";
  search.setAttribute("aria-label", "Search");
  const filter = element("select");
  filter.setAttribute("aria-label", "Filter");
  options.filters.forEach((one, i) => filter.append(new Option(one.label, i)));
  const size = element("select");
  size.setAttribute("aria-label", "Rows per page");
  for (const n of [5, 10, 25, 100]) size.append(new Option(n + " a page", n));
  const before = element("button", "", "‹ Back");
  const after = element("button", "", "Next ›");
  const count = element("span", "count");
  const controls = element("div", "controls");
  controls.append(search, filter, ...columnButtons(), size, before, after, count);
  const scroll = element("div", "scroll");
  section.append(controls, scroll);

  function columnButtons() {
    return options.columns.slice(1).map((column, i) => {
      const button = element("button");
      button.append(element("span", "swatch c" + (column.color || 0)), column.name);
      button.title = "Show or hide this column";
      button.setAttribute("aria-pressed", String(!hidden.has(i + 1)));
      button.onclick = () => {
        hidden.has(i + 1) ? hidden.delete(i + 1) : hidden.add(i + 1);
        button.setAttribute("aria-pressed", String(!hidden.has(i + 1)));
        show();
      };
      return options.toggles ? button : "";
    });
  }

  function show() {
    const query = search.value.trim().toLowerCase();
    const test = options.filters[filter.value].test;
    const found = rows.filter((row) => test(row) && (!query || options.text(row).toLowerCase().includes(query)));
    const per = Number(size.value);
    page = Math.max(0, Math.min(page, Math.ceil(found.length / per) - 1));
    const table = element("table");
    const head = element("tr");
    options.columns.forEach((column, i) => {
      if (hidden.has(i)) return;
      const th = element("th");
      th.scope = "col";
      if (column.color !== undefined) th.append(element("span", "swatch c" + column.color));
      th.append(column.name);
      head.append(th);
    });
    const body = element("tbody");
    for (const row of found.slice(page * per, (page + 1) * per)) {
      const tr = element("tr", "entry");
      options.cells(row).forEach((td, i) => hidden.has(i) || tr.append(td));
      body.append(tr);
    }
    const thead = element("thead");
    thead.append(head);
    table.append(thead, body);
    scroll.replaceChildren(table);
    before.disabled = page === 0;
    after.disabled = (page + 1) * per >= found.length;
    const first = found.length ? page * per + 1 : 0;
    count.textContent = `${first}–${Math.min((page + 1) * per, found.length)} of ${found.length}`;
  }
  const restart = () => { page = 0; show(); };
  search.oninput = filter.onchange = size.onchange = restart;
  before.onclick = () => { page -= 1; show(); };
  after.onclick = () => { page += 1; show(); };
  show();
}

function data(section) {
  return JSON.parse(document.getElementById(section.dataset.source).textContent);
}

for (const section of document.querySelectorAll(".browser.stories")) {
  const { columns, rows, roles, colors, questions } = data(section);
  const [fine, faulty] = questions ? ["is right", "is wrong"] : ["keeps all rules", "breaks a rule"];
  const filters = [{ label: "All samples", test: () => true }];
  columns.forEach((name, i) => {
    if (i === 0) return;
    filters.push({ label: `${name} ${fine}`, test: (row) => isFine(row.cells[i]) });
    filters.push({ label: `${name} ${faulty}`, test: (row) => !isFine(row.cells[i]) });
  });
  browser(section, rows, {
    columns: [{ name: questions ? "Question" : "Words" }, ...columns.map((name, i) => ({ name, color: colors[i] }))],
    hidden: columns.flatMap((name, i) => (roles[i] === "teacher" ? [i + 1] : [])),
    toggles: true,
    filters,
    text: (row) => [row.id, row.prompt, ...row.cells.map((cell) => (cell ? cell.text : ""))].join("\n"),
    cells: (row) => [promptCell(row), ...row.cells.map((cell) => storyCell(cell, row))],
  });
}

for (const section of document.querySelectorAll(".browser.rejected")) {
  const { rows, reasons } = data(section);
  const filters = [{ label: "All reasons", test: () => true }];
  for (const [reason, n] of Object.entries(reasons)) {
    filters.push({ label: `${reason.replaceAll("_", " ")} (${n})`, test: (row) => row.reason === reason });
  }
  browser(section, rows, {
    columns: [{ name: "Reason" }, { name: "About" }, { name: "Text" }],
    hidden: [],
    toggles: false,
    filters,
    text: (row) => [row.reason, row.detail, row.about, row.text].join("\n"),
    cells: (row) => {
      const why = element("td");
      why.append(element("span", "words", row.reason.replaceAll("_", " ")), element("span", "sub", row.detail));
      const about = element("td", "", row.about);
      about.append(element("span", "sub", row.run));
      return [why, about, element("td", "", row.text || "(no text was kept)")];
    },
  });
}

const theme = document.getElementById("theme");
theme.hidden = false;
theme.onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
