// The inspector in the browser. It asks the kernel what it makes of a mail, and loads nothing from anywhere.
// Every text of a mail goes in as textContent, and none into the state of the widget. See nbs/widgets/01_inspector.ipynb for the other half.

const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;
const PAUSE = 200; // Milliseconds without a key before the kernel is asked
const HIGH = 150; // Height of a plot in pixels
const EDGE = { left: 40, right: 14, top: 8, bottom: 22 };

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
const percent = p => `${(100 * p).toFixed(p > 0.9995 || p < 0.0005 ? 0 : 1)} %`;
const plain = name => name.replaceAll("_", " ");
const steps = n => `${n} ${n === 1 ? "step" : "steps"}`;

function ticks(low, high, most) { // Round numbers between two others
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(k => k * power).find(k => k >= raw * 0.999) || 10 * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step + 0);
  return found;
}

// ---- plots -----------------------------------------------------------------------------------------------------------------
class Plot {
  constructor(title) {
    this.key = make("div", { name: "key" });
    this.svg = draw("svg", { role: "img", height: HIGH });
    this.box = make("figure", {}, make("figcaption", { text: title }), this.key, this.svg);
    this.paint = () => {};
  }

  frame([x0, x1], [y0, y1], said) { // Axes; false while there is no room
    const wide = this.box.clientWidth;
    if (!wide) return false;
    const room = [wide - EDGE.left - EDGE.right, HIGH - EDGE.top - EDGE.bottom];
    this.x = v => EDGE.left + room[0] * (v - x0) / (x1 - x0 || 1);
    this.y = v => EDGE.top + room[1] * (1 - (v - y0) / (y1 - y0 || 1));
    this.wide = wide;
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${wide} ${HIGH}`);
    for (const v of ticks(y0, y1, 4)) this.svg.append(draw("path", { d: `M${EDGE.left} ${round(this.y(v))}H${wide - EDGE.right}`, class: "rule" }),
      draw("text", { x: EDGE.left - 6, y: round(this.y(v) + 4), "text-anchor": "end" }, said(v)));
    return true;
  }

  below(values, last) { // Labels of the abscissa
    values.forEach((v, i) => this.svg.append(draw("text", { x: round(i === values.length - 1 ? this.wide - EDGE.right : this.x(v)), y: HIGH - 5,
      "text-anchor": i === values.length - 1 ? "end" : "middle" }, `${i === values.length - 1 ? `${last} ` : ""}${Number(v.toFixed(2))}`)));
  }

  line(points, name) {
    this.svg.append(draw("path", { d: `M${points.map(([a, b]) => `${round(this.x(a))} ${round(this.y(b))}`).join("L")}`, class: name }));
  }

  dots(points, name) {
    for (const [a, b] of points) this.svg.append(draw("circle", { cx: round(this.x(a)), cy: round(this.y(b)), r: 3, class: name }));
  }
}

function legend(...items) { // [class of a line, text]
  return items.map(([look, text]) => make("span", {}, draw("svg", { width: 22, height: 9, "aria-hidden": "true" }, draw("path", { d: "M0 5H22", class: look })), text));
}

function paintBelief(plot, answer, halt, most) {
  const { beliefs, steps: taken } = answer, last = beliefs.length;
  const tops = [...new Set([answer.category, ...beliefs.flatMap(b => Object.entries(b.probabilities).sort((a, c) => c[1] - a[1]).slice(0, 2).map(([name]) => name))])].slice(0, 3);
  if (!plot.frame([last > 1 ? 1 : 0, last > 1 ? last : 2], [0, 1], v => `${Math.round(100 * v)} %`)) return;
  plot.svg.append(draw("path", { d: `M${EDGE.left} ${round(plot.y(halt))}H${plot.wide - EDGE.right}`, class: "halt" }));
  const sure = beliefs.map(b => [b.step, b.q]);
  plot.line(sure, "sure");
  plot.dots(sure, "dots");
  tops.forEach((name, i) => {
    const line = beliefs.map(b => [b.step, b.probabilities[name]]);
    plot.line(line, `line${i}`);
    plot.dots(line, `dot${i}`);
  });
  const x = plot.x(taken);
  if (taken < last) plot.svg.append(draw("rect", { x: round(x + 5), y: 0, width: round(Math.max(plot.wide - x, 0)), height: HIGH - EDGE.bottom + 4, class: "later" }));
  plot.svg.append(draw("path", { d: `M${round(x)} ${EDGE.top}V${HIGH - EDGE.bottom}`, class: "here" }));
  plot.below(beliefs.map(b => b.step), "step");
  plot.key.replaceChildren(...legend(...tops.map((name, i) => [`line${i}`, plain(name)]), ["sure", "sure of its answer (q)"], ["halt", "threshold"]));
  plot.svg.setAttribute("aria-label", beliefs.map(b => `step ${b.step}: ${tops.map(name => `${plain(name)} ${percent(b.probabilities[name])}`).join(", ")}, q ${percent(b.q)}`
    + (b.step === taken ? ", stopped here" : "")).join("; "));
}

function paintCurve(plot, curves, place, most, last) {
  const points = curves[most - 1], all = curves.flat(), values = all.map(p => p[1]);
  const gap = Math.max(...values) - Math.min(...values) || 0.02;
  if (!plot.frame([1, Math.max(last, 1.2)], [Math.max(0, Math.min(...values) - 0.2 * gap), Math.min(1, Math.max(...values) + 0.2 * gap)], v => `${Number((100 * v).toFixed(1))} %`)) return;
  plot.line(points, "line0");
  if (points.length < 2 || points[0][0] === points.at(-1)[0]) plot.dots(points.slice(0, 1), "dot0");
  plot.below([...ticks(1, Math.max(last, 1.2), 4).filter(v => v < last - 1e-9), last], "mean steps");
  if (place) plot.svg.append(draw("circle", { cx: round(plot.x(place.mean_steps)), cy: round(plot.y(place.accuracy)), r: 6, class: "ring" }));
}

// ---- words -----------------------------------------------------------------------------------------------------------------
function word([text, score, part]) {
  if (Math.abs(part) < 0.04) return document.createTextNode(text);
  const mark = make("mark", { text, title: `${score > 0 ? "+" : ""}${score.toFixed(2)} in log-odds`, ...(score < 0 ? { name: "against" } : {}) });
  mark.style.setProperty("--much", (0.1 + 0.5 * Math.abs(part)).toFixed(2));
  return mark;
}

function paragraph({ zone, words }) {
  const line = make("p", {}, make("span", { text: zone, name: "zone" }));
  for (const one of words) line.append(word(one), " ");
  return line;
}

function ends(title, found) {
  return make("div", {}, make("b", { text: `${title}: ` }), found.length ? found.map(([text, score]) => `${text} ${score > 0 ? "+" : ""}${score.toFixed(2)}`).join(", ") : "no word");
}

// ---- the page ----------------------------------------------------------------------------------------------------------------
function field(tag, text, attributes = {}) {
  const input = make(tag, { spellcheck: "false", autocomplete: "off", ...attributes });
  return { input, label: make("label", { text }, input) };
}

function slider(text, attributes) {
  const shown = make("span", { name: "value" }), input = make("input", { type: "range", ...attributes });
  return { input, shown, label: make("label", { text }, shown, input) };
}

function render({ model, el }) {
  const facts = model.get("facts"), view = Math.random().toString(36).slice(2);
  const sender = field("input", "From", { type: "text", maxlength: 1000 }), subject = field("input", "Subject", { type: "text", maxlength: 2000 });
  const body = field("textarea", "Body", { rows: 8, maxlength: 200000 });
  const halt = slider("Halting threshold", { min: 0, max: 1, step: 0.01 }), most = slider("Steps at most", { min: 1, max: facts.most, step: 1 });
  const form = make("form", {}, sender.label, subject.label, body.label, make("div", { name: "sliders" }, halt.label, most.label));
  const hint = make("p", { name: "note" });
  form.append(hint);
  const answer = make("p", { name: "answer", role: "status" }), note = make("p", { name: "note" }), trouble = make("p", { name: "trouble", role: "alert" });
  const bars = new Map(facts.categories.map(name => {
    const bar = make("i"), number = make("td", { name: "num" });
    return [name, { bar, number, row: make("tr", {}, make("th", { text: plain(name), scope: "row" }), make("td", {}, make("span", { name: "bar" }, bar)), number) }];
  }));
  const table = make("table", {}, make("caption", { text: "probability of each category" }), make("tbody", {}, ...[...bars.values()].map(b => b.row)));
  const belief = new Plot("belief after each step"), curve = new Plot("accuracy and its cost, at every threshold");
  const place = make("p", { name: "note", text: facts.labelled ? "measuring the labelled mail\u2026" : "no labelled mail" });
  curve.box.append(place);
  const text = make("div", { name: "text", tabindex: 0, role: "region", "aria-label": "words of the mail, shaded by what they did" }), both = make("div", { name: "ends" });
  const title = make("h3", { text: "words" }), words = make("div", { name: "words" }, title, text, both);
  const root = make("section", { name: "trm-inspector", "aria-label": "inspector", "data-lm-suppress-shortcuts": "true" },
    make("div", { name: "columns" }, form, make("div", {}, answer, note, trouble, table)), make("div", { name: "plots" }, belief.box, curve.box), words);
  const state = { seq: 0, timer: 0, said: null, place: null, curves: null };

  const limits = () => ({ halt: model.get("halt"), max_steps: model.get("max_steps") });

  function ask() { // What stands there now
    clearTimeout(state.timer);
    state.seq += 1;
    root.setAttribute("aria-busy", "true");
    words.classList.add("old");
    model.send({ kind: "read", view, seq: state.seq, sender: sender.input.value, subject: subject.input.value, body: body.input.value, ...limits() });
  }

  function soon(wait = PAUSE) {
    clearTimeout(state.timer);
    state.timer = setTimeout(ask, wait);
  }

  function showLimits() {
    const now = limits();
    if (Math.abs(Number(halt.input.value) - now.halt) > 0.006) halt.input.value = now.halt; // The threshold may be finer than the slider
    most.input.value = now.max_steps;
    halt.shown.textContent = now.halt.toFixed(Number.isInteger(Number((100 * now.halt).toFixed(6))) ? 2 : 4);
    most.shown.textContent = String(now.max_steps);
    const parts = [];
    if (facts.reads) parts.push("The second step reads closely.");
    if (now.halt >= 1) parts.push("At 1.00 nobody halts early.");
    if (now.max_steps > facts.learned) parts.push(`The model learned with ${steps(facts.learned)}.`);
    hint.textContent = parts.join(" ");
  }

  function moved() { // By hand, from Python, or in another view
    showLimits();
    if (state.curves) model.send({ kind: "place", view, seq: state.seq, ...limits() });
    soon(60);
  }

  function slide(name, value) {
    model.set(name, Number(value));
    model.save_changes();
  }

  function paint() {
    if (state.said) paintBelief(belief, state.said, limits().halt, limits().max_steps);
    if (!state.curves) return;
    paintCurve(curve, state.curves, state.place, limits().max_steps, facts.most);
    const at = state.place;
    if (!at) return;
    const cost = facts.reads && facts.most > 1 ? `${percent(at.further)} read closely` : `${percent(at.further)} take a second step`;
    place.textContent = `Here: ${percent(at.accuracy)} right, ${at.mean_steps.toFixed(2)} steps a mail, ${cost}; ${state.n.toLocaleString("en")} ${facts.about}.`;
    curve.svg.setAttribute("aria-label", place.textContent);
    curve.key.replaceChildren(...legend(["line0", `steps at most: ${limits().max_steps}`]));
  }

  const hear = {
    mail(said) {
      sender.input.value = said.sender;
      subject.input.value = said.subject;
      body.input.value = said.body;
      ask();
    },
    answer(said) {
      if (said.seq !== state.seq) return; // An answer to something that stands there no longer
      state.said = said;
      root.setAttribute("aria-busy", "false");
      trouble.textContent = "";
      answer.replaceChildren(make("strong", { text: plain(said.category) }), percent(said.confidence));
      const sure = said.beliefs[said.steps - 1].q;
      note.textContent = `after ${steps(said.steps)} of ${limits().max_steps}; ${percent(sure)} sure of being right; language ${said.language}`
        + (said.asks ? "; so unsure that it would ask" : "");
      for (const [name, { bar, number, row }] of bars) {
        const p = said.probabilities[name];
        bar.style.width = `${(100 * p).toFixed(1)}%`;
        number.textContent = percent(p);
        row.classList.toggle("top", name === said.category);
      }
      title.textContent = `words for ${plain(said.category)} and against it \u2026`;
      paint();
    },
    why(said) {
      if (said.seq !== state.seq) return;
      words.classList.remove("old");
      title.textContent = `words for ${plain(said.category)} (blue) and against it (orange, dotted)`;
      text.replaceChildren(...said.zones.map(paragraph), ...(said.left_out ? [make("p", { text: `\u2026 and ${said.left_out} more words` })] : []));
      both.replaceChildren(ends("for", said.for), ends("against", said.against));
    },
    curve(said) {
      state.curves = said.curves;
      state.n = said.n;
      model.send({ kind: "place", view, seq: state.seq, ...limits() });
    },
    place(said) {
      if (said.threshold !== limits().halt) return;
      state.place = said;
      paint();
    },
    error(said) {
      if (said.seq !== null && said.seq !== undefined && said.seq !== state.seq) return;
      root.setAttribute("aria-busy", "false");
      trouble.textContent = said.text;
    },
  };

  function receive(said) {
    if (said && Object.hasOwn(hear, said.kind) && (!said.view || said.view === view)) hear[said.kind](said);
  }

  most.input.disabled = facts.most < 2;
  for (const { input } of [sender, subject, body]) input.addEventListener("input", () => soon());
  halt.input.addEventListener("input", () => slide("halt", halt.input.value));
  most.input.addEventListener("input", () => slide("max_steps", most.input.value));
  form.addEventListener("submit", event => event.preventDefault());
  model.on("msg:custom", receive);
  model.on("change:halt", moved);
  model.on("change:max_steps", moved);
  el.append(root);
  const sizes = new ResizeObserver(paint);
  sizes.observe(belief.box);
  showLimits();
  model.send({ kind: "hello", view });
  return () => {
    clearTimeout(state.timer);
    sizes.disconnect();
    model.off("msg:custom", receive);
    model.off("change:halt", moved);
    model.off("change:max_steps", moved);
  };
}

export default { render };
