"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const MOST_ROWS = 12;

const size = (bytes) => {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(bytes) < 1024) return `${bytes.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    bytes /= 1024;
  }
  return `${bytes.toFixed(1)} TiB`;
};
const exact = (bytes) => `${bytes.toLocaleString("en")} bytes`;
const duration = (seconds) => {
  if (seconds === 0) return "0";
  if (seconds < 1e-3) return `${(seconds * 1e6).toFixed(seconds < 1e-5 ? 1 : 0)} µs`;
  return seconds < 1 ? `${(seconds * 1e3).toFixed(1)} ms` : `${seconds.toFixed(1)} s`;
};
const signed = (fraction) => `${fraction < -5e-4 ? "−" : "+"}${Math.abs(fraction * 100).toFixed(1)}%`;
const shortPath = (text) => text.replace(/(?:[A-Za-z]:)?[\\/](?:[^\\/:\s]+[\\/])+/g, "");

/** An element; what is text stays text. */
function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The colour of a name in the theme that is on: a canvas knows no variables. */
function color(name) {
  const probe = document.body.appendChild(el("i", { style: `color:var(--${name})` }));
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
const faint = (name, share) => color(name).replace(/^rgb\((.*)\)$/, `rgba($1, ${share})`);

const redrawn = [];
/** Draw now, and again whenever the theme or the width is another. */
function keepDrawn(place, draw) {
  place.replaceChildren();
  place.hidden = false;
  let width = 0;
  const again = () => draw(place.clientWidth);
  redrawn.push(again);
  new ResizeObserver(() => {
    if (place.clientWidth !== width) again((width = place.clientWidth));
  }).observe(place);
  width = place.clientWidth;
  again();
}

/** Axes that all drawings share; steps between labels of bytes are powers of two. */
const POWERS = Array.from({ length: 50 }, (_, i) => 2 ** i);
const axis = (more) => ({
  stroke: color("dim"),
  font: "12px system-ui, sans-serif",
  grid: { stroke: color("line"), width: 1 },
  ticks: { show: false },
  ...more,
});
const bytesAxis = (more) =>
  axis({ incrs: POWERS, values: (_, splits) => splits.map(size), size: 76, ...more });

/** A line with a word, straight through a drawing. */
function rule(u, { x, y, until, text, stroke, dash = [], below = false }) {
  const { left, top, width, height } = u.bbox;
  const at = x === undefined ? u.valToPos(y, "y", true) : u.valToPos(x, "x", true);
  if (x === undefined ? at < top || at > top + height : at < left || at > left + width) return;
  const c = u.ctx;
  c.save();
  c.strokeStyle = c.fillStyle = stroke;
  c.lineWidth = devicePixelRatio;
  c.setLineDash(dash.map((d) => d * devicePixelRatio));
  c.beginPath();
  const right = until === undefined ? left + width : u.valToPos(until, "x", true);
  if (x === undefined) (c.moveTo(left, at), c.lineTo(right, at));
  else (c.moveTo(at, top), c.lineTo(at, top + height));
  c.stroke();
  c.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  const gap = 5 * devicePixelRatio;
  if (text && x === undefined) (c.textAlign = "right"), c.fillText(text, right, at - gap);
  else if (text) (c.textAlign = "left"), c.fillText(text, at + gap, below ? top + height - gap : top + 2.4 * gap);
  c.restore();
}

/* ---- what is alive at a step ---- */

/** One plan's steps: bytes, positions, and what is alive where. */
class Steps {
  constructor(graph, plan, tail) {
    this.graph = graph;
    this.plan = plan;
    this.table = graph.tables[plan.table];
    this.count = plan.schedule.length;
    this.tail = tail;
    const seen = new Set();
    this.isAgain = plan.schedule.map((op) => seen.has(op) || !seen.add(op));
    this.total = plan.live.map((bytes, step) => bytes + this.beside(step) + data.resident_bytes);
    if (tail) this.total.push(data.resident_bytes + tail.reduce((sum, [, bytes]) => sum + bytes, 0));
    this.peak = this.total.reduce((best, bytes, step) => (bytes > this.total[best] ? step : best), 0);
    this.times = [0];
    plan.schedule.forEach((op, step) => this.times.push(this.times[step] + this.seconds(op, step)));
    if (tail) this.times.push(this.times[this.count] * 1.02);
  }

  beside(step) {
    return this.plan.beside[step < this.plan.boundary ? 0 : 1];
  }

  op(number) {
    const [name, module, source, seconds, workspace, flags, inputs, outputs] = this.table.ops[number];
    const text = (index) => this.graph.texts[index];
    const is = { backward: !!(flags & 1), recomputable: !!(flags & 2), moves: !!(flags & 4) };
    return { name, module: text(module), source: text(source), seconds, workspace, inputs, outputs, ...is };
  }

  /** What was just made is handed on in no time. */
  seconds(number, step) {
    const [, , , seconds, , flags] = this.table.ops[number];
    return flags & 4 && !this.isAgain[step] ? 0 : seconds;
  }

  maker(value) {
    return this.table.values[value][4];
  }

  /** Rows of everything that is there while a step runs; together they are total[step]. */
  rows(step) {
    const rows = data.resident.map(([kind, bytes]) => ({ name: kind, kind: "resident", bytes }));
    if (step >= this.count) {
      return [...rows, ...this.tail.map(([kind, bytes]) => ({ name: kind, kind: "of the update", bytes }))];
    }
    const [beside, op] = [this.beside(step), this.op(this.plan.schedule[step])];
    if (beside) rows.push({ name: "held by other graphs", kind: "resident", bytes: beside });
    const runs = this.plan.states.filter(([from]) => from <= step);
    const states = runs.length ? runs[runs.length - 1][1] : 0;
    const scratch = { name: "workspace", kind: `of ${op.name}`, bytes: op.workspace };
    if (op.workspace) rows.push({ ...scratch, module: op.module, source: op.source });
    if (states) rows.push({ name: "generator states", kind: "for what runs again", bytes: states });
    const alive = this.aliveAt(step);
    for (const [value, first] of alive) {
      const [name, bytes, kind, shape, maker] = this.table.values[value];
      if (!bytes) continue;
      const { module, source } = this.op(maker);
      rows.push({ name, kind: `${this.kind(kind, first)}, ${shape}`, bytes, module, source, value, alive });
    }
    return rows.sort((a, b) => (b.value === undefined) - (a.value === undefined) || b.bytes - a.bytes);
  }

  kind(kind, first) {
    const word = this.graph.texts[kind];
    if (word !== "activations" || !this.isAgain[first]) return word;
    return this.op(this.plan.schedule[first]).moves ? "fetched back" : "made again";
  }

  aliveAt(step) {
    const alive = new Map();
    const spans = this.plan.spans;
    for (let i = 0; i < spans.length && spans[i + 1] <= step; i += 3) {
      if (spans[i + 2] >= step) alive.set(spans[i], spans[i + 1]);
    }
    return alive;
  }

  /** Seconds of all that would run to make a value from what else is alive there; null where something runs but once. */
  secondsToMake(value, alive) {
    const [needed, open] = [new Set(), [this.maker(value)]];
    let seconds = 0;
    while (open.length) {
      const number = open.pop();
      if (needed.has(number)) continue;
      needed.add(number);
      const op = this.op(number);
      if (!op.recomputable) return null;
      seconds += op.seconds;
      for (const input of op.inputs) {
        if (this.maker(input) >= 0 && (input === value || !alive.has(input))) open.push(this.maker(input));
      }
    }
    return seconds;
  }
}

/** The heading and the table of a step. */
function showStep(place, steps, step, isOpen) {
  const rows = steps.rows(step);
  const shown = isOpen || rows.length <= MOST_ROWS + 1 ? rows : rows.slice(0, MOST_ROWS);
  const rest = rows.slice(shown.length);
  const total = rows.reduce((sum, row) => sum + row.bytes, 0);
  const isTail = step >= steps.count;
  const op = isTail ? null : steps.op(steps.plan.schedule[step]);
  const where = isTail ? "behind the backward" : step < steps.plan.boundary ? "forward" : "backward";
  const again = !isTail && steps.isAgain[step] ? (op.moves ? ", fetched" : ", run again") : "";
  const head = el("h3", {}, el("span", { class: "code" }, isTail ? "the optimizer’s update" : op.name));
  head.append(`\u2002${size(total)}${step === steps.peak ? ", the peak" : ""}`);
  const from = isTail ? [] : [op.module, shortPath(op.source), duration(steps.seconds(steps.plan.schedule[step], step))];
  const words = [`${steps.plan.name}, step ${step + 1} of ${steps.total.length}, ${where}${again}`, ...from];
  const body = shown.map((row) => {
    const seconds = row.value === undefined ? undefined : steps.secondsToMake(row.value, row.alive);
    const costs = seconds === undefined ? "" : seconds === null ? "runs once" : duration(seconds);
    return el(
      "tr",
      { "data-value": row.value ?? null },
      el("td", { class: row.value === undefined ? "name" : "name code" }, row.name),
      el("td", { class: "n", "data-v": row.bytes, title: exact(row.bytes) }, size(row.bytes)),
      el("td", { class: "more" }, row.kind),
      el("td", { class: "more" }, row.module || ""),
      el("td", { class: "more line", title: row.source || null }, shortPath(row.source || "")),
      el("td", { class: "n costs", "data-v": seconds ?? null }, costs),
    );
  });
  if (rest.length) {
    const bytes = rest.reduce((sum, row) => sum + row.bytes, 0);
    const more = el("button", { type: "button" }, `and ${rest.length} smaller values`);
    more.addEventListener("click", () => showStep(place, steps, step, true));
    const cell = el("td", { class: "n", "data-v": bytes, title: exact(bytes) }, size(bytes));
    body.push(el("tr", {}, el("td", { class: "rest" }, more), cell, el("td", { colspan: 4 })));
  }
  const sum = el("td", { class: "n", title: exact(total) }, size(total));
  const foot = el("tr", { class: "total", "data-total": total }, el("td", {}, "together"), sum, el("td", { colspan: 4 }));
  const titles = [["alive there"], ["bytes", "n"], ["what"], ["module"], ["made at"], ["to make again", "n"]];
  const titled = titles.map(([text, kind]) => el("th", { class: kind ?? null }, text));
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...titled)), el("tbody", {}, ...body, foot));
  place.dataset.step = step;
  place.replaceChildren(head, el("p", { class: "dim" }, words.filter(Boolean).join(" · ")), el("div", { class: "wide" }, table));
}
