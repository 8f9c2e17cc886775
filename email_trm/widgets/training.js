// The training dashboard in the browser. It draws the page that the kernel puts into the model, and loads nothing from anywhere.
// Every text goes in as textContent. See nbs/widgets/02_training.ipynb for the other half.

const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;
const LOOKS = ["first", "second"]; // Of the lines of a chart: color, and dashes for those who cannot tell colors
const HIGH = 132; // Height of a chart in pixels
const EDGE = { left: 44, right: 8, top: 8, bottom: 20 };

function make(tag, { text, name, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const round = v => v.toFixed(1);

function said(value) { // A number as people read it
  if (value === undefined || value === null) return "";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.01 || size === 0) return String(Number(value.toFixed(3)));
  return value.toExponential(1);
}

function ticks(low, high, most) { // Round numbers between two others
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(k => k * power).find(k => k >= raw * 0.999) || 10 * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step + 0);
  return found;
}

function bounds(values, from, to) {
  let low = Math.min(...values, ...(from === undefined ? [] : [from])), high = Math.max(...values, ...(to === undefined ? [] : [to]));
  if (low === high) [low, high] = low === 0 ? [0, 1] : [Math.min(0, low), Math.max(0, low)];
  return [low, high];
}

// ---- a chart ---------------------------------------------------------------------------------------------------------------
function sample(look, dots) { // The line of a legend
  const key = draw("svg", { width: 20, height: 9, "aria-hidden": "true" }, draw("path", { d: "M0 5H20", class: LOOKS[look] }));
  if (dots) key.append(mark(look, 10, 5));
  return key;
}

function mark(look, x, y) {
  const name = `mark ${LOOKS[look]}`;
  return look ? draw("rect", { x: round(x - 2.6), y: round(y - 2.6), width: 5.2, height: 5.2, class: name })
    : draw("circle", { cx: round(x), cy: round(y), r: 2.7, class: name });
}

function nearest(points, x) {
  let best = points[0];
  for (const point of points) if (Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
  return best;
}

class Chart {
  constructor(title) {
    this.caption = make("figcaption", { text: title });
    this.key = make("div", { name: "key" });
    this.svg = draw("svg", { role: "img", height: HIGH });
    this.box = make("figure", {}, this.caption, this.key, this.svg);
    this.svg.addEventListener("pointermove", event => this.hover(event));
    this.svg.addEventListener("pointerleave", () => this.rest());
  }

  show(chart) {
    this.chart = chart;
    this.lines = chart.lines.map((line, look) => ({ ...line, look })).filter(line => line.points.length);
    this.paint();
  }

  paint() {
    const wide = this.box.clientWidth;
    if (!this.chart || !wide) return;
    this.svg.setAttribute("viewBox", `0 0 ${wide} ${HIGH}`);
    this.svg.replaceChildren();
    this.svg.style.display = this.lines.length ? "" : "none"; // An empty chart takes no room
    this.rest();
    this.svg.setAttribute("aria-label", this.lines.length
      ? `${this.chart.title}: ${this.lines.map(line => `${line.name} ${said(line.points.at(-1)[1])}`).join(", ")}` : `${this.chart.title}: nothing known`);
    if (!this.lines.length) return;
    const all = this.lines.flatMap(line => line.points);
    const [x0, x1] = bounds(all.map(p => p[0]), 0), [y0, y1] = bounds(all.map(p => p[1]), this.chart.free ? undefined : 0, this.chart.top ?? undefined);
    const room = [wide - EDGE.left - EDGE.right, HIGH - EDGE.top - EDGE.bottom];
    const x = v => EDGE.left + room[0] * (v - x0) / (x1 - x0), y = v => EDGE.top + room[1] * (1 - (v - y0) / (y1 - y0));
    Object.assign(this, { x, y, x0, x1, room });
    for (const v of ticks(y0, y1, 3)) this.svg.append(draw("path", { d: `M${EDGE.left} ${round(y(v))}H${wide - EDGE.right}`, class: "rule" }),
      draw("text", { x: EDGE.left - 6, y: round(y(v) + 4), "text-anchor": "end" }, said(v)));
    const steps = ticks(x0, x1, Math.max(2, Math.floor(room[0] / 70)));
    for (const v of steps) this.svg.append(draw("text", { x: round(x(v)), y: HIGH - 5, "text-anchor": v === steps.at(-1) && x(v) > wide - 24 ? "end" : "middle" },
      said(v) + (v === steps.at(-1) ? ` ${this.chart.x === "minute" ? "min" : "updates"}` : "")));
    for (const line of this.lines) {
      this.svg.append(draw("path", { d: `M${line.points.map(([a, b]) => `${round(x(a))} ${round(y(b))}`).join("L")}`, class: LOOKS[line.look] }));
      const shown = line.dots && line.points.length <= 60 ? line.points : line.points.slice(-1);
      for (const [a, b] of shown) this.svg.append(mark(line.look, x(a), y(b)));
    }
    this.here = draw("path", { class: "here", d: "", visibility: "hidden" });
    this.svg.append(this.here);
  }

  legend(value, before = "") { // Names of the lines, each with a number
    this.key.replaceChildren(...(before ? [make("span", { text: before })] : []), ...this.lines.map(line => make("span", {},
      sample(line.look, line.dots), `${line.name} `, make("b", { text: said(value(line)) }))));
    if (!this.lines.length) this.key.textContent = this.chart.title.startsWith("temperature") ? "no sensor tells" : this.over ? "not recorded" : "nothing yet";
  }

  rest() {
    if (!this.chart) return;
    if (this.here) this.here.setAttribute("visibility", "hidden");
    this.legend(line => line.points.at(-1)[1]);
  }

  hover(event) {
    if (!this.lines || !this.lines.length || !this.x) return;
    const at = this.x0 + (event.clientX - this.svg.getBoundingClientRect().left - EDGE.left) / this.room[0] * (this.x1 - this.x0);
    const x = nearest(this.lines[0].points, at)[0];
    this.here.setAttribute("d", `M${round(this.x(x))} ${EDGE.top}V${HIGH - EDGE.bottom}`);
    this.here.setAttribute("visibility", "visible");
    this.legend(line => nearest(line.points, x)[1], `${this.chart.x} ${said(x)}`);
  }
}

// ---- categories --------------------------------------------------------------------------------------------------------------
function spark(points) { // F1 of a category over time, from 0 to 1
  const svg = draw("svg", { width: 90, height: 20, viewBox: "0 0 90 20", "aria-hidden": "true" });
  const last = points.at(-1)[0], first = points[0][0], x = v => 3 + 84 * (last > first ? (v - first) / (last - first) : 1), y = v => 17 - 14 * v;
  if (points.length > 1) svg.append(draw("path", { d: `M${points.map(([a, b]) => `${round(x(a))} ${round(y(b))}`).join("L")}`, class: "first" }));
  svg.append(mark(0, x(last), y(points.at(-1)[1])));
  return svg;
}

function row({ name, f1, best, points }) {
  const bar = make("i");
  bar.style.width = `${Math.round(100 * f1)}%`;
  return make("tr", {}, make("th", { text: name.replaceAll("_", " "), scope: "row" }), make("td", { text: f1.toFixed(3), name: "num" }),
    make("td", { name: "wide" }, make("span", { name: "bar" }, bar)), make("td", { text: best.toFixed(3), name: "num" }), make("td", {}, spark(points)));
}

// ---- the page ----------------------------------------------------------------------------------------------------------------
function heading(...names) {
  return make("thead", {}, make("tr", {}, ...names.map(([text, name]) => make("th", { text, scope: "col", ...(name ? { name } : {}) }))));
}

function render({ model, el }) {
  const title = make("h3"), state = make("span", { name: "state", role: "status" }), button = make("button", { type: "button" });
  const words = make("p", { name: "said" }), far = make("p", { name: "reached" }), bar = make("progress", { max: 1, "aria-label": "updates of this phase" });
  const phases = make("ul", { name: "phases", "aria-label": "phases" }), grid = make("div", { name: "grid" }), note = make("p", { name: "note" });
  const body = make("tbody"), table = make("table", {}, make("caption", { text: "F1 of each category on validation mail, weakest first" }),
    heading(["category"], ["F1", "num"], [""], ["best", "num"], ["so far"]), body);
  const root = make("section", { name: "trm-training", "aria-label": "training dashboard" }, make("div", { name: "head" }, title, state, button), words, far, bar,
    phases, grid, table, note);
  const charts = [];

  function show() {
    const page = model.get("page");
    if (!page || !page.state) return;
    title.textContent = page.name;
    state.dataset.state = page.state;
    if (state.textContent !== page.state) state.textContent = page.state;
    words.textContent = page.said === page.state ? "" : page.said;
    words.hidden = !words.textContent;
    const { step, max_steps: most, epoch, epochs } = page.far, parts = page.phase ? [page.phase] : [];
    if (step !== undefined) parts.push(`update ${said(step)}${most ? ` of ${said(most)}` : ""}`);
    if (epoch) parts.push(`epoch ${epoch.toFixed(1)}${epochs ? ` of ${said(epochs)}` : ""}`);
    if (page.left && page.state === "running") parts.push(`at most ${page.left} left in this phase`);
    far.textContent = parts.join(" \u00B7 ");
    bar.hidden = !most;
    if (most) bar.value = page.state === "finished" ? 1 : Math.min(1, step / most);
    phases.hidden = page.phases.length < 2;
    phases.replaceChildren(...page.phases.map(phase => make("li", { text: phase.name, "data-state": phase.state, "aria-label": `${phase.name}, ${phase.state}` })));
    page.charts.forEach((chart, i) => {
      if (!charts[i]) { charts[i] = new Chart(chart.title); grid.append(charts[i].box); }
      charts[i].over = page.state === "finished";
      charts[i].show(chart);
    });
    grid.hidden = page.state === "waiting";
    table.hidden = !page.categories.length;
    body.replaceChildren(...page.categories.map(row));
    note.textContent = page.faults.length ? `Mended on the way: ${page.faults.map(f => `${f.n} \u00D7 ${f.kind}`).join(", ")}.` : "";
  }

  function turn() {
    button.textContent = model.get("watching") ? "Stop watching" : "Watch";
  }

  button.addEventListener("click", () => { model.set("watching", !model.get("watching")); model.save_changes(); });
  model.on("change:page", show);
  model.on("change:watching", turn);
  el.append(root);
  const sizes = new ResizeObserver(() => charts.forEach(chart => chart.paint()));
  sizes.observe(grid);
  turn();
  show();
  return () => { sizes.disconnect(); model.off("change:page", show); model.off("change:watching", turn); };
}

export default { render };
