// What happens when the page is opened.

function drawShare({ alone, total }) {
  const whole = Math.max(alone || 0, total || 0);
  const bar = make("span", { style: `width: ${whole ? (100 * (alone || 0)) / whole : 0}%` });
  const said = [total, alone].map((share) => (share === null ? "n/a" : share.toFixed(2)));
  const parts = document.createDocumentFragment();
  parts.append(
    make("span", {}, make("span", { class: "bar", style: `display: block; width: ${100 * whole}%` }, bar)),
    make("span", { class: "share" }, `${said[0]}, alone ${said[1]}`),
  );
  return parts;
}

function options(id, values, chosen) {
  find(id).replaceChildren(
    ...values.map(([value, text]) => make("option", { value, selected: value === chosen }, text)),
  );
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
  const common = runs.columns.filter(
    (one) => !one.shown && one.kind !== "acc" && one.name !== "run_id" && one.name !== "status",
  );
  find("common").textContent = common.length
    ? `All runs: ${common.map((one) => `${one.name} ${write(one.kind, one.values[0])}`).join(", ")}.`
    : "";
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
  find("more").addEventListener("click", () => {
    view.shown += 2 * ROWS;
    drawTable();
  });
  const tests = ["single runs by the two-proportion z-test on the pictures that accuracies were measured on"];
  if (data.seeds) tests.unshift("means over seeds by Welch's t-test");
  find("ties").textContent =
    `≈ marks what cannot be told apart from the first: ${tests.join(", ")}; at 5 % for all comparisons together (Holm).`;
  const keys = [...new Set(data.curves.flatMap((curve) => Object.keys(curve.metrics)))].sort();
  const preferred = [data.metric.replace("_", "/"), "val/acc", "train/acc"].find(
    (key) => keys.includes(key) && data.curves.some((one) => (one.metrics[key] || [[]])[0].length > 1),
  );
  options(
    "curve",
    keys.map((key) => [key, key]),
    preferred,
  );
  find("curves").hidden = !keys.length;
  for (const id of ["curve", "log"]) find(id).addEventListener("change", drawCurves);
  const settings = data.settings.map((setting, i) => [String(i), setting.name]);
  options("heat-x", settings, "0");
  options("heat-y", settings, "1");
  for (const id of ["heat-x", "heat-y"]) find(id).addEventListener("change", drawSettings);
  find("importance").replaceChildren(
    ...data.settings.map((setting) => make("li", {}, make("span", {}, setting.name), drawShare(setting.importance))),
  );
  update();
  drawTree();
  drawBest();
  requestAnimationFrame(() => setTimeout(drawPlots)); // the tables are there at once
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
}

start();
