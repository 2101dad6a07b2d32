// The tables of runs and of means over seeds, their filter, and a run's own dialog.

const MARKS = { "≈": "cannot be told apart from the first", "?": "too few seeds to say" };
const column = (table, name) => table.columns.find((one) => one.name === name);
const shownColumns = (table) => table.columns.filter((one) => one.shown);
const runs = data.runs;
const names = column(runs, "run_name").values;
const metricValues = column(runs, data.metric) ? column(runs, data.metric).values : names.map(() => null);
const view = { table: runs, sort: null, down: false, rows: [], shown: ROWS };

/** Whole numbers of any size as they are: seeds go beyond what a number holds. They compare with numbers exactly. */
const exact = (text) => (/^[+-]?\d+$/.test(text) ? BigInt(text) : Number(text));

/** `adam lr_0>=0.01`: words that a line must contain, and comparisons of a column. */
function matcher(table, text) {
  const tests = text
    .trim()
    .split(/\s+/)
    .filter(Boolean)
    .map((word) => {
      const [, name, operator, wanted] = /^(\w+)(>=|<=|!=|=|>|<)(.+)$/.exec(word) || [];
      const here =
        name && (column(table, name) || (table === runs && data.settings.find((setting) => setting.name === name)));
      if (!here) return (row) => table.text[row].includes(word.toLowerCase());
      const number = wanted.endsWith("%") ? parseFloat(wanted) / 100 : exact(wanted);
      return (row) => {
        const value = here.values[row];
        if (operator === "=" || operator === "!=") {
          const same =
            typeof value === "number" ? value == number : String(value).toLowerCase() === wanted.toLowerCase();
          return same === (operator === "=");
        }
        if (value === null || Number.isNaN(number)) return false;
        const own = typeof value === "string" ? exact(value) : value;
        return { ">": own > number, "<": own < number, ">=": own >= number, "<=": own <= number }[operator];
      };
    });
  return (row) => tests.every((test) => test(row));
}

function texts(table) {
  return table.marks.map((_, row) =>
    table.columns
      .map((one) => String(one.values[row] ?? ""))
      .join(" ")
      .toLowerCase(),
  );
}

function choose() {
  const { table } = view;
  table.text = table.text || texts(table);
  const fits = matcher(table, find("filter").value);
  view.rows = table.marks.map((_, row) => row).filter(fits);
  if (view.sort) {
    const { values } = view.sort;
    const sign = view.down ? -1 : 1;
    const order = (a, b) =>
      typeof a === "number" && typeof b === "number"
        ? a - b
        : String(a).localeCompare(String(b), "en", { numeric: true });
    view.rows.sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x === null || y === null) return (x === null) - (y === null); // what has no value comes last either way
      return sign * order(x, y) || a - b;
    });
  }
  view.shown = ROWS;
}

function drawTable() {
  const { table } = view;
  const head = shownColumns(table).map((one) => {
    const sorted = view.sort === one;
    const arrow = sorted ? (view.down ? " ▼" : " ▲") : "";
    const inFilter = one.label === one.name ? null : `${one.name} in the filter`;
    const button = make("button", { type: "button", title: inFilter, onclick: () => sortBy(one) }, one.label + arrow);
    return make(
      "th",
      {
        scope: "col",
        class: one.kind === "text" ? null : "number",
        "aria-sort": sorted ? (view.down ? "descending" : "ascending") : "none",
      },
      button,
    );
  });
  find("rows").tHead.replaceChildren(make("tr", {}, ...head));
  find("rows").tBodies[0].replaceChildren(...view.rows.slice(0, view.shown).map(drawRow));
  const left = view.rows.length - view.shown;
  find("more").hidden = left <= 0;
  find("more").textContent = `Show ${Math.min(left, 2 * ROWS)} more of ${left}`;
  find("count").textContent =
    `${view.rows.length.toLocaleString("en")} of ${table.marks.length.toLocaleString("en")} lines`;
}

function drawRow(row) {
  const { table } = view;
  const cells = shownColumns(table).map((one) => {
    const text = write(one.kind, one.values[row]);
    if (one.name === "run_name")
      return make("td", {}, make("button", { type: "button", onclick: () => openRun(row) }, text || "(no name)"));
    const mark = one.name === "rank" && table.marks[row];
    return make(
      "td",
      { class: one.kind === "text" ? null : "number", title: mark ? MARKS[mark] : null },
      mark ? `${mark} ${text}` : text,
    );
  });
  return make("tr", { class: table.marks[row] ? "marked" : null }, ...cells);
}

function sortBy(one) {
  view.down = view.sort === one ? !view.down : one.higher;
  view.sort = one;
  choose();
  drawTable();
  [...find("rows").tHead.rows[0].cells][shownColumns(view.table).indexOf(one)].firstChild.focus();
}

function openRun(row) {
  const command = data.commands[row];
  find("run-name").textContent = names[row];
  find("run-command").textContent = command || "";
  find("run-command").parentElement.hidden = !command;
  const lines = runs.columns.filter((one) => one.values[row] !== null && one.name !== "run_name");
  find("run-values").replaceChildren(
    ...lines.map((one) =>
      make("tr", {}, make("th", { scope: "row" }, one.label), make("td", {}, write(one.kind, one.values[row]))),
    ),
  );
  find("run").showModal();
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling); // no permission: it is selected, to copy by hand
    button.textContent = "Selected";
  }
  setTimeout(() => {
    button.textContent = "Copy";
  }, 1500);
}
