// What happens when the page is opened.

function drawShare(share) {
  const parts = document.createDocumentFragment();
  if (share === null) parts.append(make("span", {}), make("span", { class: "share" }, "within chance"));
  else
    parts.append(
      make("span", {}, make("span", { class: "bar", style: `display: block; width: ${100 * share}%` })),
      make("span", { class: "share" }, share.toFixed(2)),
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
    (one) => !one.shown && one.name !== "run_id" && one.name !== "status",
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
  const overSeeds =
    "Of means over seeds, ≈ marks what cannot be told apart from the first and ? that there are too few seeds to say; " +
    "a line without a mark is worse, at 5 % for the whole table, the choice of the first included. ";
  find("ties").textContent =
    (data.seeds ? overSeeds : "") +
    "Single runs have no mark: one run does not tell how much of its place is the luck of its seed" +
    (data.seeds ? "." : " (give several, seed=1,2,3,4,5).");
  const keys = [...new Set(data.curves.flatMap((curve) => Object.keys(curve.metrics)))].sort();
  const preferred = [data.metric, "val_acc", "train_acc"].find(
    (key) => keys.includes(key) && data.curves.some((one) => (one.metrics[key] || [[]])[0].length > 1),
  );
  options(
    "curve",
    keys.map((key) => [key, data.metrics[key].label]),
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
