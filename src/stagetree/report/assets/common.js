"use strict";
// The page's one program: tables as plain HTML, plots with Plotly. Everything shown comes from the element #data.

const data = JSON.parse(document.getElementById("data").textContent);
const LEADERS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9467bd", "#8c564b"]; // mostly Okabe-Ito
const ROWS = 100; // of a table, shown at a time
const MANY = 2000; // points, from which Plotly draws with WebGL
const find = (id) => document.getElementById(id);
const ranking = data.metrics[data.metric]; // the metric that ranks

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.map((child) => (child === null || child === undefined ? "" : child)));
  return element;
}

function write(kind, value) {
  if (value === null || value === undefined) return "";
  if (kind === "percent") return (100 * value).toFixed(2) + " %";
  if (kind === "loss") return Math.abs(value) < 1e4 ? value.toFixed(4) : value.toExponential(3);
  if (kind === "seconds") return value.toFixed(1);
  return String(value);
}
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // Plotly reads tags
const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
