"use strict";
// The page's one program: tables as plain HTML, plots with Plotly. Everything shown comes from the element #data.

const data = JSON.parse(document.getElementById("data").textContent);
const LEADERS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9467bd", "#8c564b"]; // mostly Okabe-Ito
const ROWS = 100; // of a table, shown at a time
const MANY = 2000; // points, from which Plotly draws with WebGL
const find = (id) => document.getElementById(id);
const isLoss = data.metric.endsWith("loss") || data.metric.endsWith("seconds");

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.map((child) => (child === null || child === undefined ? "" : child)));
  return element;
}

function write(kind, value) {
  if (value === null || value === undefined) return "";
  if (kind === "acc") return (100 * value).toFixed(2) + " %";
  if (kind === "loss") return Math.abs(value) < 1e4 ? value.toFixed(4) : value.toExponential(3);
  if (kind === "seconds") return value.toFixed(1);
  return String(value);
}
const kindOf = (name) => ["acc", "loss", "seconds"].find((kind) => name.endsWith(kind)) || "number";
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // Plotly reads tags
const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// ---------------------------------------------------------------- tables

const column = (table, name) => table.columns.find((one) => one.name === name);
const shownColumns = (table) => table.columns.filter((one) => one.shown);
const runs = data.runs;
const names = column(runs, "run_name").values;
const metricValues = column(runs, data.metric) ? column(runs, data.metric).values : names.map(() => null);
const view = { table: runs, sort: null, down: false, rows: [], shown: ROWS };

/** `adam lr_0>=0.01`: words that a line must contain, and comparisons of a column. */
function matcher(table, text) {
  const tests = text.trim().split(/\s+/).filter(Boolean).map((word) => {
    const [, name, operator, wanted] = /^(\w+)(>=|<=|!=|=|>|<)(.+)$/.exec(word) || [];
    const here = name && (column(table, name) || (table === runs && data.settings.find((setting) => setting.name === name)));
    if (!here) return (row) => table.text[row].includes(word.toLowerCase());
    const number = wanted.endsWith("%") ? parseFloat(wanted) / 100 : Number(wanted);
    return (row) => {
      const value = here.values[row];
      if (operator === "=" || operator === "!=") {
        const same = typeof value === "number" ? value === number : String(value).toLowerCase() === wanted.toLowerCase();
        return same === (operator === "=");
      }
      if (value === null || Number.isNaN(number)) return false;
      return { ">": value > number, "<": value < number, ">=": value >= number, "<=": value <= number }[operator];
    };
  });
  return (row) => tests.every((test) => test(row));
}

function texts(table) {
  return table.tied.map((_, row) => table.columns.map((one) => String(one.values[row] ?? "")).join(" ").toLowerCase());
}

function choose() {
  const { table } = view;
  table.text = table.text || texts(table);
  const fits = matcher(table, find("filter").value);
  view.rows = table.tied.map((_, row) => row).filter(fits);
  if (view.sort) {
    const { values } = view.sort;
    const sign = view.down ? -1 : 1;
    const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
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
    const button = make("button", { type: "button", onclick: () => sortBy(one) }, one.name + arrow);
    return make("th", { scope: "col", class: one.kind === "text" ? null : "number", "aria-sort": sorted ? (view.down ? "descending" : "ascending") : "none" }, button);
  });
  find("rows").tHead.replaceChildren(make("tr", {}, ...head));
  find("rows").tBodies[0].replaceChildren(...view.rows.slice(0, view.shown).map(drawRow));
  const left = view.rows.length - view.shown;
  find("more").hidden = left <= 0;
  find("more").textContent = `Show ${Math.min(left, 2 * ROWS)} more of ${left}`;
  find("count").textContent = `${view.rows.length.toLocaleString("en")} of ${table.tied.length.toLocaleString("en")} lines`;
}

function drawRow(row) {
  const { table } = view;
  const cells = shownColumns(table).map((one) => {
    const text = write(one.kind, one.values[row]);
    if (one.name === "run_name") return make("td", {}, make("button", { type: "button", onclick: () => openRun(row) }, text || "(no name)"));
    const tie = one.name === "rank" && table.tied[row];
    return make("td", { class: one.kind === "text" ? null : "number", title: tie ? "not told apart from the first" : null }, tie ? `≈ ${text}` : text);
  });
  return make("tr", { class: table.tied[row] ? "tied" : null }, ...cells);
}

function sortBy(one) {
  view.down = view.sort === one ? !view.down : one.kind === "acc";
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
  find("run-values").replaceChildren(...lines.map((one) => make("tr", {}, make("th", { scope: "row" }, one.name), make("td", {}, write(one.kind, one.values[row])))));
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
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// ---------------------------------------------------------------- plots

/** Runs that the filter leaves, by their place in the ranking. */
function visible() {
  if (view.table === runs) return [...view.rows].sort((a, b) => a - b);
  return runs.tied.map((_, row) => row);
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["ground", "ink", "soft", "line", "grey"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function layout(more = {}) {
  const c = colours();
  const axis = { gridcolor: c.line, zeroline: false, linecolor: c.line, automargin: true };
  const base = { paper_bgcolor: c.ground, plot_bgcolor: c.ground, font: { color: c.ink, size: 13 }, margin: { l: 55, r: 15, t: 15, b: 45 },
    showlegend: false, hoverlabel: { bgcolor: c.ground, font: { color: c.ink } }, dragmode: false };
  for (const [name, value] of Object.entries(more)) base[name] = /^[xy]axis/.test(name) ? { ...axis, ...value } : value;
  return base;
}
const draw = (id, traces, more) => Plotly.react(find(id), traces, layout(more), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
const percent = (name) => (name.endsWith("acc") ? { tickformat: ".1%" } : {});

function drawCurves() {
  const key = find("curve").value;
  const rows = visible().filter((row) => data.curves[row] && data.curves[row].metrics[key]);
  const leaders = rows.slice(0, LEADERS.length);
  const others = { x: [], y: [] };
  for (const row of rows.slice(LEADERS.length)) {
    const [epochs, values] = data.curves[row].metrics[key];
    others.x.push(...epochs, null);
    others.y.push(...values, null);
  }
  const c = colours();
  const traces = [{ ...others, mode: "lines", type: others.x.length > 50000 ? "scattergl" : "scatter", line: { color: c.grey, width: 1 }, opacity: 0.35, hoverinfo: "skip", name: `${rows.length - leaders.length} others`, showlegend: rows.length > leaders.length }];
  leaders.forEach((row, place) => {
    const { ends, metrics } = data.curves[row];
    const [x, y] = metrics[key];
    traces.push({ x, y, mode: "lines+markers", name: cut(plain(names[row]), 60), line: { color: LEADERS[place], width: 2 },
      marker: { line: { width: 0 }, size: x.map((epoch) => (ends.includes(epoch) ? 9 : 3)), symbol: x.map((epoch) => (ends.includes(epoch) ? "diamond" : "circle")) } });
  });
  const last = Math.max(1, ...rows.map((row) => data.curves[row].metrics[key][0].at(-1)));
  const boundaries = [...new Set(leaders.flatMap((row) => data.curves[row].ends.slice(0, -1)))].slice(0, 30);
  const shapes = boundaries.map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: c.soft, width: 1, dash: "dot" } }));
  draw("curves-plot", traces, { xaxis: { title: { text: "epoch" }, ...(last <= 12 ? { dtick: 1 } : {}) }, yaxis: { title: { text: key }, type: find("log").checked ? "log" : "linear", ...percent(key) },
    shapes, showlegend: true, legend: { orientation: "h", y: -0.2 }, height: 460 });
  const left = data.curves.length < runs.tied.length ? ` Curves of the first ${data.curves.length} runs alone are in this page.` : "";
  find("curves-note").textContent = `${key} of ${rows.length} runs; the first ${leaders.length} in colour, diamonds and dotted lines where their stages end.${left}`;
}

/** Positions of a setting's values on an axis: logarithms, numbers, or places in an order. */
function scale(setting, rows) {
  const values = [...new Set(rows.map((row) => setting.values[row]).filter((value) => value !== null))];
  values.sort((a, b) => (setting.numeric ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
  const log = setting.numeric && values[0] > 0 && values.at(-1) / values[0] >= 20;
  const at = setting.numeric && (log || values.length > 12) ? (value) => (log ? Math.log10(value) : value) : (value) => values.indexOf(value);
  const ticks = values.length <= 12 ? values : values.filter((_, i) => i % Math.ceil(values.length / 8) === 0);
  return { values, at, ticks: { tickvals: ticks.map(at), ticktext: ticks.map((value) => cut(plain(value), 18)) } };
}

function drawSettings() {
  const rows = visible().filter((row) => metricValues[row] !== null);
  const shown = data.settings.slice(0, 8);
  find("settings").hidden = !shown.length || rows.length < 2;
  if (find("settings").hidden) return;
  const c = colours();
  const wide = find("slices").parentElement.clientWidth > 700;
  const across = Math.min(shown.length, wide ? 3 : 1);
  const traces = [], axes = {}, lines = [];
  shown.forEach((setting, place) => {
    const own = rows.filter((row) => setting.values[row] !== null);
    const { values, at, ticks } = scale(setting, own);
    const n = place ? place + 1 : "";
    const means = values.map((value) => mean(own.filter((row) => setting.values[row] === value).map((row) => metricValues[row])));
    traces.push({ x: own.map((row) => at(setting.values[row])), y: own.map((row) => metricValues[row]), text: own.map((row) => cut(plain(names[row]), 60)), mode: "markers",
      type: own.length > MANY ? "scattergl" : "scatter", marker: { color: LEADERS[0], size: 5, opacity: 0.5 }, xaxis: `x${n}`, yaxis: `y${n}`, hovertemplate: "%{text}<br>%{y}<extra></extra>" });
    traces.push({ x: values.map(at), y: means, mode: "lines+markers", line: { color: LEADERS[1], width: 2 }, xaxis: `x${n}`, yaxis: `y${n}`, hovertemplate: "mean %{y}<extra></extra>" });
    axes[`xaxis${n}`] = { title: { text: plain(setting.name) }, ...ticks };
    axes[`yaxis${n}`] = { ...percent(data.metric) };
    values.slice(0, 50).forEach((value, i) => {
      const figures = own.filter((row) => setting.values[row] === value).map((row) => metricValues[row]);
      const best = isLoss ? Math.min(...figures) : Math.max(...figures);
      lines.push([setting.name, value, figures.length, write(kindOf(data.metric), means[i]), write(kindOf(data.metric), best)]);
    });
  });
  const down = Math.ceil(shown.length / across);
  draw("slices", traces, { ...axes, grid: { rows: down, columns: across, pattern: "independent", ygap: 0.3 }, height: 280 * down });
  const head = make("tr", {}, ...["setting", "value", "runs", "mean", "best"].map((word) => make("th", { scope: "col" }, word)));
  find("means").replaceChildren(make("thead", {}, head), make("tbody", {}, ...lines.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, String(cell)))))));
  drawHeat(rows);
  drawParallel(rows, shown, c);
}

function drawHeat(rows) {
  const [x, y] = ["heat-x", "heat-y"].map((id) => data.settings[Number(find(id).value)]);
  const several = data.settings.length > 1;
  for (const id of ["heat", "heat-title"]) find(id).hidden = !several;
  find("heat-x").closest(".tools").hidden = !several;
  if (!several) return;
  const xs = scale(x, rows).values, ys = scale(y, rows).values;
  const cells = ys.map(() => xs.map(() => []));
  for (const row of rows) {
    const [i, j] = [ys.indexOf(y.values[row]), xs.indexOf(x.values[row])];
    if (i >= 0 && j >= 0) cells[i][j].push(metricValues[row]);
  }
  const z = cells.map((line) => line.map((cell) => (cell.length ? mean(cell) : null)));
  const kind = kindOf(data.metric);
  const label = (value) => cut(plain(value), 24);
  draw("heat", [{ type: "heatmap", x: xs.map((_, j) => j), y: ys.map((_, i) => i), z, customdata: cells.map((line) => line.map((cell) => cell.length)),
    colorscale: "Viridis", reversescale: isLoss, text: z.map((line) => line.map((value) => write(kind, value))), texttemplate: xs.length * ys.length <= 150 ? "%{text}" : "",
    hovertemplate: "mean %{text} of %{customdata} runs<extra></extra>", colorbar: { thickness: 12, ...percent(data.metric) } }],
  { xaxis: { title: { text: plain(x.name) }, tickvals: xs.map((_, j) => j), ticktext: xs.map(label), showgrid: false },
    yaxis: { title: { text: plain(y.name) }, tickvals: ys.map((_, i) => i), ticktext: ys.map(label), showgrid: false }, height: Math.max(280, 60 + 42 * ys.length) });
}

function drawParallel(rows, shown, c) {
  const axes = shown.filter((setting) => rows.every((row) => setting.values[row] !== null)).map((setting) => {
    const { at, ticks } = scale(setting, rows);
    return { label: cut(plain(setting.name), 20), values: rows.map((row) => at(setting.values[row])), ...ticks };
  });
  const values = rows.map((row) => metricValues[row]);
  axes.push({ label: plain(data.metric), values, ...percent(data.metric) });
  draw("parallel", [{ type: "parcoords", dimensions: axes, line: { color: values, colorscale: "Viridis", reversescale: isLoss }, labelfont: { color: c.ink },
    tickfont: { color: c.ink }, rangefont: { color: c.soft }, unselected: { line: { color: c.grey, opacity: 0.08 } } }], { margin: { l: 70, r: 70, t: 50, b: 25 }, height: 400 });
}

// ---------------------------------------------------------------- tree, best run

function drawTree() {
  const part = data.tree.length && data.tree[0].children.length ? data.tree[0].children[0].part : "";
  const also = part.replace("/", "_") !== data.metric;
  find("tree-note").textContent = part ? `Runs that begin alike share their training. ${part} at the end of each stage${also ? `, and ${data.metric} at a run's end` : ""}; # is a run's rank.` : "No run has a schedule yet.";
  const branch = (node, open) => {
    const words = [`${node.epochs} epoch${node.epochs === 1 ? "" : "s"} at ${node.lr} `];
    if (node.value !== null) words.push(make("span", { class: "value" }, write(kindOf(node.part), node.value)), " ");
    if (node.run !== null) words.push(make("button", { type: "button", onclick: () => openRun(node.run), "aria-label": `run ${node.run + 1}: ${names[node.run]}` }, `#${node.run + 1}`), also ? ` ${write(kindOf(data.metric), node.metric)}` : "");
    if (!node.children.length) return make("li", {}, make("span", { class: "leaf" }, ...words));
    return make("li", {}, fold(words, node.children, open || node.best === 0));
  };
  const size = (nodes) => nodes.reduce((sum, node) => sum + 1 + size(node.children), 0);
  const few = data.tree.length && size(data.tree) / data.tree.length <= 30; // of one trunk
  const fold = (words, children, open) => {
    const details = make("details", { open }, make("summary", {}, ...words));
    const fill = () => { if (details.children.length === 1) details.append(make("ul", {}, ...children.map((child) => branch(child, few)))); }; // when looked at
    if (open) fill();
    details.addEventListener("toggle", fill);
    return details;
  };
  find("branches").replaceChildren(...data.tree.map((trunk, place) => fold([trunk.label], trunk.children, place === 0 || data.tree.length <= 4)));
}

function drawBest() {
  const { best } = data;
  if (best.missing) {
    find("best-note").textContent = best.missing;
    find("confusion").parentElement.hidden = true;
    return;
  }
  find("best-note").textContent = `${best.run}. Rows are true classes, columns what the run says of the test pictures.`;
  const head = make("tr", {}, make("td"), ...best.classes.map((name) => make("th", { scope: "col" }, name)));
  const lines = best.matrix.map((line, i) => {
    const total = line.reduce((sum, n) => sum + n, 0) || 1;
    return make("tr", {}, make("th", { scope: "row" }, best.classes[i]), ...line.map((n) => make("td", { style: `--share: ${(n / total).toFixed(3)}` }, n ? String(n) : "·")));
  });
  find("confusion").replaceChildren(make("thead", {}, head), make("tbody", {}, ...lines));
  find("mistakes").replaceChildren(...best.mistakes.map((one) => {
    const [label, said] = [best.classes[one.label], best.classes[one.said]];
    return make("li", {}, make("img", { src: one.png, alt: `test picture ${one.index}, a ${label}` }), make("span", {}, `${label}, said ${said} (${(100 * one.confidence).toFixed(1)} %)`));
  }));
}

// ---------------------------------------------------------------- start

function drawShare({ alone, total }) {
  const whole = Math.max(alone || 0, total || 0);
  const bar = make("span", { style: `width: ${whole ? (100 * (alone || 0)) / whole : 0}%` });
  const said = [total, alone].map((share) => (share === null ? "n/a" : share.toFixed(2)));
  const parts = document.createDocumentFragment();
  parts.append(make("span", {}, make("span", { class: "bar", style: `display: block; width: ${100 * whole}%` }, bar)), make("span", { class: "share" }, `${said[0]}, alone ${said[1]}`));
  return parts;
}

function options(id, values, chosen) {
  find(id).replaceChildren(...values.map(([value, text]) => make("option", { value, selected: value === chosen }, text)));
}

function drawPlots() {
  if (!find("curves").hidden) drawCurves();
  drawSettings();
}

function update() {
  choose();
  drawTable();
}

function start() {
  document.title = `Leaderboard: ${data.summary}`;
  find("summary").textContent = data.summary;
  if (data.command) {
    find("command").hidden = false;
    find("command").firstElementChild.textContent = data.command;
    find("command").lastElementChild.addEventListener("click", (event) => copy(event.target, data.command));
  }
  const common = runs.columns.filter((one) => !one.shown && one.kind !== "acc" && one.name !== "run_id" && one.name !== "status");
  find("common").textContent = common.length ? `All runs: ${common.map((one) => `${one.name} ${write(one.kind, one.values[0])}`).join(", ")}.` : "";
  find("copy").addEventListener("click", (event) => copy(event.target, find("run-command").textContent));
  find("view").hidden = !data.seeds;
  find("view").addEventListener("change", (event) => {
    view.table = data[event.target.value];
    view.sort = null;
    update();
    drawPlots();
  });
  let waiting;
  find("filter").addEventListener("input", () => {
    update();
    clearTimeout(waiting);
    waiting = setTimeout(drawPlots, 200);
  });
  find("more").addEventListener("click", () => { view.shown += 2 * ROWS; drawTable(); });
  const tests = ["single runs by the two-proportion z-test on the pictures that accuracies were measured on"];
  if (data.seeds) tests.unshift("means over seeds by Welch's t-test");
  find("ties").textContent = `≈ marks what cannot be told apart from the first: ${tests.join(", ")}; at 5 % for all comparisons together (Holm).`;
  const keys = [...new Set(data.curves.flatMap((curve) => Object.keys(curve.metrics)))].sort();
  const preferred = [data.metric.replace("_", "/"), "val/acc", "train/acc"].find((key) => keys.includes(key) && data.curves.some((one) => (one.metrics[key] || [[]])[0].length > 1));
  options("curve", keys.map((key) => [key, key]), preferred);
  find("curves").hidden = !keys.length;
  for (const id of ["curve", "log"]) find(id).addEventListener("change", drawCurves);
  const settings = data.settings.map((setting, i) => [String(i), setting.name]);
  options("heat-x", settings, "0");
  options("heat-y", settings, "1");
  for (const id of ["heat-x", "heat-y"]) find(id).addEventListener("change", drawSettings);
  find("importance").replaceChildren(...data.settings.map((setting) => make("li", {}, make("span", {}, setting.name),
    drawShare(setting.importance))));
  update();
  drawTree();
  drawBest();
  requestAnimationFrame(() => setTimeout(drawPlots)); // the tables are there at once
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
}

start();
