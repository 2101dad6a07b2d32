// Everything that Plotly draws: curves, slices, heat map, parallel coordinates.

/** Runs that the filter leaves, by their place in the ranking. */
function visible() {
  if (view.table === runs) return [...view.rows].sort((a, b) => a - b);
  return runs.marks.map((_, row) => row);
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(
    ["ground", "ink", "soft", "line", "grey"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]),
  );
}

function layout(more = {}) {
  const c = colours();
  const axis = { gridcolor: c.line, zeroline: false, linecolor: c.line, automargin: true };
  const base = {
    paper_bgcolor: c.ground,
    plot_bgcolor: c.ground,
    font: { color: c.ink, size: 13 },
    margin: { l: 55, r: 15, t: 15, b: 45 },
    showlegend: false,
    hoverlabel: { bgcolor: c.ground, font: { color: c.ink } },
    dragmode: false,
  };
  for (const [name, value] of Object.entries(more)) base[name] = /^[xy]axis/.test(name) ? { ...axis, ...value } : value;
  return base;
}
const draw = (id, traces, more) =>
  Plotly.react(find(id), traces, layout(more), {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  });
const ticksOf = (metric) => (metric.kind === "percent" ? { tickformat: ".1%" } : {});

function drawCurves() {
  const key = find("curve").value;
  const metric = data.metrics[key];
  const rows = visible().filter((row) => data.curves[row] && data.curves[row].metrics[key]);
  const leaders = rows.slice(0, LEADERS.length);
  const others = { x: [], y: [] };
  for (const row of rows.slice(LEADERS.length)) {
    const [epochs, values] = data.curves[row].metrics[key];
    others.x.push(...epochs, null);
    others.y.push(...values, null);
  }
  const c = colours();
  const traces = [
    {
      ...others,
      mode: "lines",
      type: others.x.length > 50000 ? "scattergl" : "scatter",
      line: { color: c.grey, width: 1 },
      opacity: 0.35,
      hoverinfo: "skip",
      name: `${rows.length - leaders.length} others`,
      showlegend: rows.length > leaders.length,
    },
  ];
  leaders.forEach((row, place) => {
    const { ends, metrics } = data.curves[row];
    const [x, y] = metrics[key];
    traces.push({
      x,
      y,
      mode: "lines+markers",
      name: cut(plain(names[row]), 60),
      line: { color: LEADERS[place], width: 2 },
      marker: {
        line: { width: 0 },
        size: x.map((epoch) => (ends.includes(epoch) ? 9 : 3)),
        symbol: x.map((epoch) => (ends.includes(epoch) ? "diamond" : "circle")),
      },
    });
  });
  const last = Math.max(1, ...rows.map((row) => data.curves[row].metrics[key][0].at(-1)));
  const boundaries = [...new Set(leaders.flatMap((row) => data.curves[row].ends.slice(0, -1)))].slice(0, 30);
  const shapes = boundaries.map((x) => ({
    type: "line",
    x0: x,
    x1: x,
    yref: "paper",
    y0: 0,
    y1: 1,
    line: { color: c.soft, width: 1, dash: "dot" },
  }));
  draw("curves-plot", traces, {
    xaxis: { title: { text: "epoch" }, ...(last <= 12 ? { dtick: 1 } : {}) },
    yaxis: { title: { text: metric.label }, type: find("log").checked ? "log" : "linear", ...ticksOf(metric) },
    shapes,
    showlegend: true,
    legend: { orientation: "h", y: -0.2 },
    height: 460,
  });
  const left =
    data.curves.length < runs.marks.length
      ? ` Curves of the first ${data.curves.length} runs alone are in this page.`
      : "";
  find("curves-note").textContent =
    `${metric.label} of ${rows.length} runs; the first ${leaders.length} in colour, diamonds and dotted lines where their stages end.${left}`;
}

/** Positions of a setting's values on an axis: logarithms, numbers, or places in an order. */
function scale(setting, rows) {
  const values = [...new Set(rows.map((row) => setting.values[row]).filter((value) => value !== null))];
  values.sort((a, b) => (setting.numeric ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
  const log = setting.numeric && values[0] > 0 && values.at(-1) / values[0] >= 20;
  const at =
    setting.numeric && (log || values.length > 12)
      ? (value) => (log ? Math.log10(value) : value)
      : (value) => values.indexOf(value);
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
  const traces = [],
    axes = {},
    lines = [];
  shown.forEach((setting, place) => {
    const own = rows.filter((row) => setting.values[row] !== null);
    const { values, at, ticks } = scale(setting, own);
    const n = place ? place + 1 : "";
    const groups = new Map(values.map((value) => [value, []]));
    for (const row of own) groups.get(setting.values[row]).push(metricValues[row]);
    const means = values.map((value) => mean(groups.get(value)));
    traces.push({
      x: own.map((row) => at(setting.values[row])),
      y: own.map((row) => metricValues[row]),
      text: own.map((row) => cut(plain(names[row]), 60)),
      mode: "markers",
      type: own.length > MANY ? "scattergl" : "scatter",
      marker: { color: LEADERS[0], size: 5, opacity: 0.5 },
      xaxis: `x${n}`,
      yaxis: `y${n}`,
      hovertemplate: "%{text}<br>%{y}<extra></extra>",
    });
    traces.push({
      x: values.map(at),
      y: means,
      mode: "lines+markers",
      line: { color: LEADERS[1], width: 2 },
      xaxis: `x${n}`,
      yaxis: `y${n}`,
      hovertemplate: "mean %{y}<extra></extra>",
    });
    axes[`xaxis${n}`] = { title: { text: plain(setting.name) }, ...ticks };
    axes[`yaxis${n}`] = ticksOf(ranking);
    values.slice(0, 50).forEach((value, i) => {
      const reached = groups.get(value);
      const best = ranking.higher ? Math.max(...reached) : Math.min(...reached);
      lines.push([
        setting.name,
        value,
        reached.length,
        write(ranking.kind, means[i]),
        write(ranking.kind, best),
      ]);
    });
  });
  const down = Math.ceil(shown.length / across);
  draw("slices", traces, {
    ...axes,
    grid: { rows: down, columns: across, pattern: "independent", ygap: 0.3 },
    height: 280 * down,
  });
  const head = make(
    "tr",
    {},
    ...["setting", "value", "runs", "mean", "best"].map((word) => make("th", { scope: "col" }, word)),
  );
  find("means").replaceChildren(
    make("thead", {}, head),
    make("tbody", {}, ...lines.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, String(cell)))))),
  );
  drawHeat(rows);
  drawParallel(rows, shown, c);
}

function drawHeat(rows) {
  const [x, y] = ["heat-x", "heat-y"].map((id) => data.settings[Number(find(id).value)]);
  const several = data.settings.length > 1;
  for (const id of ["heat", "heat-title"]) find(id).hidden = !several;
  find("heat-x").closest(".tools").hidden = !several;
  if (!several) return;
  const xs = scale(x, rows).values,
    ys = scale(y, rows).values;
  const cells = ys.map(() => xs.map(() => []));
  for (const row of rows) {
    const [i, j] = [ys.indexOf(y.values[row]), xs.indexOf(x.values[row])];
    if (i >= 0 && j >= 0) cells[i][j].push(metricValues[row]);
  }
  const z = cells.map((line) => line.map((cell) => (cell.length ? mean(cell) : null)));
  const label = (value) => cut(plain(value), 24);
  draw(
    "heat",
    [
      {
        type: "heatmap",
        x: xs.map((_, j) => j),
        y: ys.map((_, i) => i),
        z,
        customdata: cells.map((line) => line.map((cell) => cell.length)),
        colorscale: "Viridis",
        reversescale: !ranking.higher,
        text: z.map((line) => line.map((value) => write(ranking.kind, value))),
        texttemplate: xs.length * ys.length <= 150 ? "%{text}" : "",
        hovertemplate: "mean %{text} of %{customdata} runs<extra></extra>",
        colorbar: { thickness: 12, ...ticksOf(ranking) },
      },
    ],
    {
      xaxis: {
        title: { text: plain(x.name) },
        tickvals: xs.map((_, j) => j),
        ticktext: xs.map(label),
        showgrid: false,
      },
      yaxis: {
        title: { text: plain(y.name) },
        tickvals: ys.map((_, i) => i),
        ticktext: ys.map(label),
        showgrid: false,
      },
      height: Math.max(280, 60 + 42 * ys.length),
    },
  );
}

function drawParallel(rows, shown, c) {
  const axes = shown
    .filter((setting) => rows.every((row) => setting.values[row] !== null))
    .map((setting) => {
      const { at, ticks } = scale(setting, rows);
      return { label: cut(plain(setting.name), 20), values: rows.map((row) => at(setting.values[row])), ...ticks };
    });
  const values = rows.map((row) => metricValues[row]);
  axes.push({ label: ranking.label, values, ...ticksOf(ranking) });
  draw(
    "parallel",
    [
      {
        type: "parcoords",
        dimensions: axes,
        line: { color: values, colorscale: "Viridis", reversescale: !ranking.higher },
        labelfont: { color: c.ink },
        tickfont: { color: c.ink },
        rangefont: { color: c.soft },
        unselected: { line: { color: c.grey, opacity: 0.08 } },
      },
    ],
    { margin: { l: 70, r: 70, t: 50, b: 25 }, height: 400 },
  );
}
