/* ---- memory over the step ---- */

function memory(section, graph) {
  const chart = section.querySelector(".chart");
  const panel = section.querySelector(".at");
  const plans = graph.plans.map((plan) => new Steps(graph, plan, plan.name === "chosen" ? data.tail : null));
  const chosen = Math.max(graph.plans.findIndex((plan) => plan.name === "chosen"), 0);
  let [picked, across, at, isHeld, u] = [chosen, "steps", plans[chosen].peak, false, null];
  const now = () => plans[picked];
  const last = () => now().total.length - 1;

  /** Where a plan's steps begin, and the last one ends. In steps, forward and backward are as long as the picked plan's. */
  function positions(plan) {
    if (across === "time") return plan.times.map((seconds) => seconds * 1e3);
    const [own, other] = [plan.plan.boundary, now().plan.boundary];
    const behind = (now().count - other) / Math.max(plan.count - own, 1);
    const at = (step) => (step < own ? (step * other) / own : other + (step - own) * behind);
    return Array.from({ length: plan.total.length + 1 }, (_, step) => at(step));
  }
  function stepAt(x) {
    const places = positions(now());
    let [low, high] = [0, last()];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (places[middle] <= x) low = middle;
      else high = middle - 1;
    }
    return low;
  }
  function show(step, hold) {
    at = Math.min(Math.max(step, 0), last());
    isHeld = hold;
    showStep(panel, now(), at, false);
    if (u) u.redraw(false);
  }
  function zoom(factor) {
    const places = positions(now());
    const [from, to, end] = [u.scales.x.min, u.scales.x.max, places[places.length - 1]];
    const half = Math.min(((to - from) * factor) / 2, end / 2);
    const middle = Math.min(Math.max((places[at] + places[at + 1]) / 2, half), end - half);
    u.setScale("x", factor ? { min: middle - half, max: middle + half } : { min: 0, max: end });
  }
  /** A step that is gone to must be in sight. */
  function follow() {
    const x = positions(now())[at];
    const { min, max } = u.scales.x;
    if (x < min || x > max) u.setScale("x", { min: Math.max(x - (max - min) / 2, 0), max: Math.max(x - (max - min) / 2, 0) + max - min });
  }

  function options(width) {
    const names = graph.plans.map((plan) => plan.name);
    const series = names.map((name, i) => ({
      stroke: color(name),
      width: i === picked ? 2 : 1.25,
      fill: i === picked ? faint(name, 0.12) : undefined,
      paths: uPlot.paths.stepped({ align: 1 }),
      points: { show: false },
      spanGaps: true,
    }));
    const top = Math.max(...plans.map((plan) => plan.total[plan.peak]));
    const highest = data.budget_bytes < 1.5 * top ? Math.max(top, data.budget_bytes) : top;
    const label = (_, splits) => splits.map((x) => (across === "time" ? duration(x / 1e3) : Number.isInteger(x) ? x : ""));
    return {
      width,
      height: width < 600 ? 260 : 340,
      padding: [12, 28, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { range: [0, highest * 1.06] } },
      axes: [axis({ grid: { show: false }, values: label, size: 30 }), bytesAxis({})],
      series: [{}, ...series],
      hooks: { setCursor: [hover], draw: [marks] },
    };
  }
  function hover(u) {
    if (isHeld || u.cursor.left === undefined || u.cursor.left < 0) return;
    const step = stepAt(u.posToVal(u.cursor.left, "x"));
    if (step !== at) show(step, false);
  }
  function marks(u) {
    const places = positions(now());
    rule(u, { y: data.budget_bytes, text: "budget", stroke: color("budget"), dash: [6, 4] });
    rule(u, { x: places[now().plan.boundary], text: "backward", stroke: color("dim"), dash: [2, 4], below: true });
    rule(u, { x: (places[at] + places[at + 1]) / 2, stroke: color("ink"), dash: isHeld ? [] : [1, 2] });
  }
  function draw(width, keepsView = true) {
    const kept = u && keepsView ? { ...u.scales.x } : null;
    if (u) u.destroy();
    const tables = plans.map((plan) => {
      const places = positions(plan);
      return [places, [...plan.total, plan.total[plan.total.length - 1]]];
    });
    u = new uPlot(options(width), uPlot.join(tables), chart);
    if (kept) u.setScale("x", { min: kept.min, max: kept.max });
    listen(u.over);
  }
  function listen(over) {
    let from = null;
    over.addEventListener("pointerdown", (event) => (from = event.clientX));
    over.addEventListener("click", (event) => {
      if (from !== null && Math.abs(event.clientX - from) > 4) return; // it was dragged
      show(stepAt(u.posToVal(event.clientX - over.getBoundingClientRect().left, "x")), !isHeld);
      chart.focus({ preventScroll: true });
    });
  }
  function pick(plan) {
    picked = plan;
    press();
    draw(chart.clientWidth, false);
    show(now().peak, false);
  }
  function press() {
    for (const button of section.querySelectorAll("[data-plan],[data-across]")) {
      const isOn = button.dataset.plan === String(picked) || button.dataset.across === across;
      button.setAttribute("aria-checked", isOn);
    }
  }

  const goes = {
    ArrowLeft: (event) => show(at - (event.shiftKey ? 10 : 1), true),
    ArrowRight: (event) => show(at + (event.shiftKey ? 10 : 1), true),
    Home: () => show(0, true),
    End: () => show(last(), true),
    p: () => show(now().peak, true),
    Escape: () => show(at, false),
  };
  const zooms = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => zoom(0) };
  chart.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(goes[event.key] || zooms[event.key])) return;
    event.preventDefault();
    (goes[event.key] || zooms[event.key])(event);
    if (goes[event.key]) follow();
  });
  const does = { peak: () => (show(now().peak, true), follow()), in: () => zoom(0.5), out: () => zoom(2), all: () => zoom(0) };
  section.querySelector(".controls").hidden = false;
  section.addEventListener("click", (event) => {
    const { plan, across: axis, do: what } = event.target.closest("button")?.dataset ?? {};
    if (plan !== undefined) pick(Number(plan));
    if (axis !== undefined) ((across = axis), press(), draw(chart.clientWidth, false), show(at, isHeld));
    if (what !== undefined) does[what]();
  });
  press();
  keepDrawn(chart, draw);
  show(at, false);
}

/* ---- extra time over memory ---- */

function curve(place, { points, chosen, budget, bound, ways }) {
  const tip = el("div", { class: "tip", hidden: "" });
  const marked = [
    ...points.map(([x, y, planner]) => ({ x, y, text: `${planner}` })),
    ...ways.map(([name, x, y]) => ({ x, y, text: name })),
    ...(chosen ? [{ x: chosen[0], y: chosen[1], text: "chosen" }] : []),
    ...(bound ? [{ x: bound[0], y: bound[1], text: "no plan inside the budget takes less time" }] : []),
  ];
  let u = null;
  function draw(width) {
    if (u) u.destroy();
    const column = (pairs) => [pairs.map(([x]) => x), pairs.map(([, y]) => y)];
    const sorted = (pairs) => [...pairs].sort((a, b) => a[0] - b[0]);
    const highest = Math.max(...marked.map(({ y }) => y), 0.01);
    const xs = marked.map(({ x }) => x).concat(budget && budget < 1.3 * points[points.length - 1][0] ? [budget] : []);
    const [low, high] = [Math.min(...xs), Math.max(...xs)];
    const room = Math.max((high - low) * 0.04, 1);
    const dots = (name, width, fill) => ({ paths: () => null, stroke: color(name), points: { show: true, size: width, width: 1.5, fill: color(fill) } });
    const labels = (_, splits) => splits.map((y) => `${(y * 100).toFixed(highest < 0.1 ? 1 : 0)}%`);
    const options = {
      width,
      height: width < 600 ? 240 : 300,
      padding: [14, 12, 0, 0],
      legend: { show: false },
      cursor: { x: false, y: false, points: { show: false }, drag: { setScale: false } },
      scales: { x: { time: false, range: [low - room, high + room] }, y: { range: [-0.03 * highest, highest * 1.1] } },
      axes: [
        bytesAxis({ grid: { show: false }, size: 34, space: 90 }),
        axis({ size: 56, values: labels, splits: undefined, incrs: [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10] }),
      ],
      series: [
        {},
        { stroke: color("chosen"), width: 1.5, paths: uPlot.paths.stepped({ align: 1 }), spanGaps: true, points: { show: true, size: points.length > 30 ? 4 : 6, fill: color("chosen") } },
        dots("minimum", 8, "paper"),
        dots("dim", 8, "paper"),
        dots("ink", 11, "chosen"),
      ],
      hooks: { draw: [marks], setCursor: [hover] },
    };
    const tables = [points, ways.map(([, x, y]) => [x, y]), bound ? [bound] : [], chosen ? [chosen] : []];
    u = new uPlot(options, uPlot.join(tables.map((pairs) => column(sorted(pairs)))), place);
    place.append(tip);
  }
  function marks(u) {
    if (budget) rule(u, { x: budget, text: "budget", stroke: color("budget"), dash: [6, 4] });
    const line = { stroke: color("dim"), dash: [2, 4] };
    if (bound) rule(u, { y: bound[1], until: Math.min(bound[0], u.scales.x.max), ...line });
  }
  function hover(u) {
    const { left, top } = u.cursor;
    const away = ({ x, y }) => Math.hypot(u.valToPos(x, "x") - left, u.valToPos(y, "y") - top);
    const near = marked.filter((point) => away(point) < 14).sort((a, b) => away(a) - away(b));
    tip.hidden = left < 0 || !near.length;
    if (tip.hidden) return;
    const alike = near.filter(({ x, y }) => x === near[0].x && y === near[0].y);
    const names = [...new Set(alike.map(({ text }) => text))].join(", ");
    tip.textContent = `${size(near[0].x)}  ${signed(near[0].y)}  ${names}`;
    const [x, y] = [u.over.offsetLeft + u.valToPos(near[0].x, "x"), u.over.offsetTop + u.valToPos(near[0].y, "y")];
    tip.style.left = `${Math.min(x + 10, place.clientWidth - tip.offsetWidth)}px`;
    tip.style.top = `${y - 30}px`;
  }
  keepDrawn(place, draw);
}

/* ---- steps that were measured ---- */

function measured(place, { planned, measured, room_bytes: room }) {
  let u = null;
  keepDrawn(place, (width) => {
    if (u) u.destroy();
    const top = Math.max(...planned, ...measured);
    const line = (name, width) => ({ stroke: color(name), width, points: { show: planned.length < 60, size: 5, fill: color(name) } });
    const options = {
      width,
      height: 220,
      padding: [12, 28, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false }, y: { range: [0, 1.08 * (room < 1.5 * top ? Math.max(top, room) : top)] } },
      axes: [axis({ grid: { show: false }, size: 30, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500] }), bytesAxis({})],
      series: [{}, { ...line("dim", 1.25), paths: uPlot.paths.stepped({ align: 0 }) }, line("chosen", 1.75)],
      hooks: { draw: [(u) => rule(u, { y: room, text: "budget", stroke: color("budget"), dash: [6, 4] })] },
    };
    u = new uPlot(options, [planned.map((_, i) => i + 1), planned, measured], place);
  });
}

/* ---- tables, theme ---- */

function sortable(table) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    const key = (row) => ("v" in row.cells[column].dataset ? Number(row.cells[column].dataset.v) : row.cells[column].textContent);
    const compare = (a, b) => (typeof key(a) === "number" ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, { numeric: true }));
    const sort = () => {
      const isDown = title.getAttribute("aria-sort") !== "descending";
      const rows = [...table.tBodies[0].rows].sort(compare);
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      table.tBodies[0].append(...(isDown ? rows.reverse() : rows));
    };
    title.tabIndex = 0;
    title.addEventListener("click", sort);
    title.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") (event.preventDefault(), sort());
    });
  });
}

function filtered(label) {
  const [input, output] = [label.querySelector("input"), label.querySelector("output")];
  const rows = [...label.parentElement.querySelector("table").tBodies[0].rows];
  label.hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    const count = rows.filter((row) => !row.hidden).length;
    output.textContent = input.value ? `${count} of ${rows.length}` : "";
  });
}

function themes(button) {
  const names = ["auto", "light", "dark"];
  const redraw = () => redrawn.forEach((again) => again());
  button.hidden = false;
  button.addEventListener("click", () => {
    const name = names[(names.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % names.length];
    document.documentElement.dataset.theme = name;
    button.textContent = `theme: ${name}`;
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

document.querySelectorAll("section.memory").forEach((each) => memory(each, data.graphs[each.dataset.graph]));
document.querySelectorAll(".chart.curve").forEach((each) => curve(each, data.graphs[each.dataset.graph].curve));
document.querySelectorAll(".chart.history").forEach((each) => measured(each, data.history));
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".filter").forEach(filtered);
themes(document.getElementById("theme"));
