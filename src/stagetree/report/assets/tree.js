// The stage tree, and the images that the best run misclassified.

function drawTree() {
  const part = data.tree.length ? data.metrics[data.tree[0].children[0].part] : null;
  const also = part !== ranking;
  find("tree-note").textContent = part
    ? `Runs that begin alike share their training. ${part.label} at the end of each stage${also ? `, and ${ranking.label.toLowerCase()} at a run's end` : ""}; # is a run's rank.`
    : "No run has a schedule yet.";
  const branch = (node, open) => {
    const words = [`${node.epochs} epoch${node.epochs === 1 ? "" : "s"} at ${node.lr} `];
    if (node.value !== null) words.push(make("span", { class: "value" }, write(part.kind, node.value)), " ");
    if (node.run !== null)
      words.push(
        make(
          "button",
          { type: "button", onclick: () => openRun(node.run), "aria-label": `run ${node.run + 1}: ${names[node.run]}` },
          `#${node.run + 1}`,
        ),
        also ? ` ${write(ranking.kind, node.metric)}` : "",
      );
    const title = `state ${node.uid}`;
    if (!node.children.length) return make("li", { title }, make("span", { class: "leaf" }, ...words));
    return make("li", { title }, fold(words, node.children, open || node.best === 0));
  };
  const size = (nodes) => nodes.reduce((sum, node) => sum + 1 + size(node.children), 0);
  const few = data.tree.length && size(data.tree) / data.tree.length <= 30; // of one trunk
  const fold = (words, children, open) => {
    const details = make("details", { open }, make("summary", {}, ...words));
    const fill = () => {
      if (details.children.length === 1) details.append(make("ul", {}, ...children.map((child) => branch(child, few))));
    }; // when looked at
    if (open) fill();
    details.addEventListener("toggle", fill);
    return details;
  };
  find("branches").replaceChildren(
    ...data.tree.map((trunk, place) => fold([trunk.label], trunk.children, place === 0 || data.tree.length <= 4)),
  );
}

function drawBest() {
  const { best } = data;
  if (best.missing) {
    find("best-note").textContent = best.missing;
    find("confusion").parentElement.hidden = true;
    return;
  }
  find("best-note").textContent = `${best.run}. Rows are true classes, columns what the run says of the test images.`;
  const head = make("tr", {}, make("td"), ...best.classes.map((name) => make("th", { scope: "col" }, name)));
  const lines = best.matrix.map((line, i) => {
    const total = line.reduce((sum, n) => sum + n, 0) || 1;
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, best.classes[i]),
      ...line.map((n) => make("td", { style: `--share: ${(n / total).toFixed(3)}` }, n ? String(n) : "·")),
    );
  });
  find("confusion").replaceChildren(make("thead", {}, head), make("tbody", {}, ...lines));
  find("misclassified").replaceChildren(
    ...best.misclassified.map((one) => {
      const [label, said] = [best.classes[one.label], best.classes[one.said]];
      return make(
        "li",
        {},
        make("img", { src: one.png, alt: `test image ${one.index}, a ${label}` }),
        make("span", {}, `${label}, said ${said} (${(100 * one.confidence).toFixed(1)} %)`),
      );
    }),
  );
}
