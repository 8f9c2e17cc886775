// The inbox in the browser. It asks the kernel for what it can show, and loads nothing from anywhere.
// Every text of a mail goes in as textContent. See nbs/widgets/00_inbox.ipynb for the other half.

const ROW = 30; // Height of a row in pixels; inbox.css says the same
const PAGE = 100; // Rows asked for at once
const AHEAD = 6; // Rows drawn above and below what is seen
const TALLEST = 8_000_000; // Pixels; browsers lose count beyond some 17 million, so longer tables are scaled
const COLUMNS = [ // name in the kernel, heading, width, only if the mailbox has it
  ["time", "Date", "10.6em"], ["sender", "From", "21%"], ["subject", "Subject", "auto"], ["answer", "Category", "9em"],
  ["confidence", "Sure", "6.6em", "confidence"], ["label", "Label", "8em", "labels"], ["action", "Action", "7em", "actions"],
  ["steps", "Steps", "4.8em", "confidence"],
];
const HELP = [["↓ ↑ or j k", "next, previous mail"], ["Page Up, Page Down, Home, End", "move further"], ["the key beside a category", "the mail is of this category"],
  ["u", "undo"], ["/", "search"], ["Esc", "back to the table"], ["?", "show or hide this"]];
const SVG = "http://www.w3.org/2000/svg"; // The name of SVG, not an address: nothing is asked for there

function make(tag, { text, name, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  element.append(...children);
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const percent = p => `${Math.round(100 * p)} %`;
const plain = name => name.replaceAll("_", " ");
const count = n => n.toLocaleString("en");
const two = n => String(n).padStart(2, "0");

function moment(milliseconds) {
  if (milliseconds === null) return "";
  const d = new Date(milliseconds);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}`;
}

function person(sender) { // "Ada <ada@example.org>" is Ada
  const found = /^\s*"?([^"<]*?)"?\s*<.*>?\s*$/.exec(sender || "");
  return found && found[1] ? found[1] : sender || "";
}

// ---- the plot of belief ----------------------------------------------------------------------------------------------------
function spread(wanted, gap, low, high) { // Labels that would lie on each other move apart
  const order = wanted.map((y, i) => [y, i]).sort((a, b) => a[0] - b[0]);
  let last = low - gap;
  for (const item of order) last = item[0] = Math.max(item[0], last + gap);
  let ceiling = high + gap;
  for (const item of order.reverse()) ceiling = item[0] = Math.min(item[0], ceiling - gap);
  const placed = [];
  for (const [y, i] of order) placed[i] = y;
  return placed;
}

function plot(why) {
  const steps = why.beliefs, wide = 340, high = 176, left = 44, right = 234, top = 12, bottom = 146;
  const x = i => steps.length > 1 ? left + 8 + (right - left - 16) * i / (steps.length - 1) : (left + right) / 2;
  const y = p => bottom - (bottom - top) * p;
  const most = c => Math.max(...steps.map(b => b.p[c]));
  const names = Object.keys(steps[0].p).sort((a, b) => (b === why.category) - (a === why.category) || most(b) - most(a)).slice(0, 3);
  const at = why.halted_at - 1;
  const told = steps.map(b => `step ${b.step}: ${names.map(c => `${c} ${percent(b.p[c])}`).join(", ")}; sure ${percent(b.q)}`);
  const svg = draw("svg", { viewBox: `0 0 ${wide} ${high}`, class: "plot", role: "img", "aria-label": `Belief after each step. ${told.join(". ")}. Answered at step ${why.halted_at}.` });
  if (at < steps.length - 1) svg.append(draw("rect", { x: x(at), y: top, width: right - x(at), height: bottom - top, class: "beyond" }));
  for (const p of [0, 0.5, 1]) svg.append(draw("line", { x1: left, x2: right, y1: y(p), y2: y(p), class: "grid" }),
    draw("text", { x: left - 5, y: y(p) + 4, class: "tick", "text-anchor": "end" }, `${100 * p} %`));
  steps.forEach((b, i) => svg.append(draw("text", { x: x(i), y: bottom + 14, class: i === at ? "tick here" : "tick", "text-anchor": "middle" }, b.step)));
  svg.append(draw("text", { x: (left + right) / 2, y: bottom + 28, class: "tick", "text-anchor": "middle" }, "recursion step"));
  svg.append(draw("line", { x1: x(at), x2: x(at), y1: top, y2: bottom, class: "halt" }));
  const lines = [...names.map((c, i) => ({ label: c, kind: `line c${i}`, values: steps.map(b => b.p[c]) })),
    { label: "sure of it (q)", kind: "line q", values: steps.map(b => b.q) }];
  const ends = spread(lines.map(l => y(l.values.at(-1)) + 4), 14, top + 4, bottom + 2);
  lines.forEach((l, i) => {
    svg.append(draw("polyline", { points: l.values.map((p, k) => `${x(k)},${y(p)}`).join(" "), class: l.kind }));
    l.values.forEach((p, k) => svg.append(draw("circle", { cx: x(k), cy: y(p), r: k === at ? 4 : 2.2, class: `${l.kind} dot` })));
    svg.append(draw("text", { x: right + 6, y: ends[i], class: `${l.kind} name` }, `${l.label} ${percent(l.values.at(-1))}`));
  });
  return svg;
}

// ---- a mail ----------------------------------------------------------------------------------------------------------------
function piece([text, share]) {
  if (!share) return document.createTextNode(text);
  const mark = make("mark", { text, name: share > 0 ? "for" : "against", title: `${share > 0 ? "for" : "against"}, ${percent(Math.abs(share))} of the strongest word` });
  mark.style.setProperty("--much", (0.1 + 0.55 * Math.abs(share)).toFixed(2));
  return mark;
}

function zoneBlocks(zones) {
  return zones.filter(([kind]) => kind !== "subject" && kind !== "sender").map(([kind, pieces]) => {
    const text = make("div", { name: "text" });
    pieces.forEach((p, i) => { text.append(piece(p)); if (kind === "headers" && i < pieces.length - 1) text.append(" "); });
    return make("div", { name: `zone ${kind}` }, make("div", { name: "kind", text: kind }), text);
  });
}

function bars(probabilities) {
  const rows = Object.entries(probabilities).sort((a, b) => b[1] - a[1]).slice(0, 4);
  return make("div", { name: "bars" }, ...rows.flatMap(([name, p], i) => {
    const fill = make("i");
    fill.style.width = `${100 * p}%`;
    return [make("span", { text: name, name: i ? "" : "top" }), make("span", { name: "bar", "aria-hidden": "true" }, fill), make("span", { text: percent(p), name: "number" })];
  }));
}

// ---- the widget ------------------------------------------------------------------------------------------------------------
class Inbox {
  constructor(model, el) {
    this.model = model;
    this.view = Math.random().toString(36).slice(2);
    this.seq = 0;
    this.latest = {}; // Kind -> number of the last message
    this.filters = { categories: [], actions: [], languages: [], low: 0, high: 1, disagree: false, corrected: false, words: "" };
    this.sort = ["time", true];
    this.n = 0;
    this.rows = new Map(); // Number in the selection -> row
    this.asked = new Set(); // Pages under way
    this.told = ""; // What the status line says when nobody waits
    this.cursor = -1;
    this.current = null; // Detail that is shown
    this.timers = {};
    this.build(el);
    this.heard = message => this.hear(message);
    this.learned = () => this.showFacts();
    model.on("msg:custom", this.heard);
    model.on("change:facts", this.learned);
    this.observer = new ResizeObserver(() => this.drawRows());
    this.observer.observe(this.scroll);
    this.showFacts();
    this.select();
  }

  close() {
    this.model.off("msg:custom", this.heard);
    this.model.off("change:facts", this.learned);
    this.observer.disconnect();
    Object.values(this.timers).forEach(clearTimeout);
  }

  later(name, milliseconds, action) {
    clearTimeout(this.timers[name]);
    this.timers[name] = setTimeout(action, milliseconds);
  }

  // ---- talking to the kernel
  ask(kind, body = {}) {
    this.latest[kind] = ++this.seq;
    this.later("wait", 900, () => { this.status.textContent = "waiting for the kernel …"; });
    this.model.send({ kind, view: this.view, seq: this.seq, ...body });
  }

  hear(m) {
    if (m.row && (m.kind === "correct" || m.kind === "undo")) this.update(m.row);
    if (m.view !== this.view) return;
    clearTimeout(this.timers.wait);
    this.status.textContent = this.told;
    if (m.kind === "page" ? m.seq < this.latest.select : m.kind !== "error" && m.seq !== this.latest[m.kind]) return; // An old answer
    if (m.kind === "error") this.fail(m);
    else this[`on_${m.kind}`](m);
  }

  fail(m) {
    if (m.of === "page") this.asked.clear();
    if (m.of === "why") this.reason.replaceChildren();
    this.say(m.text, true);
  }

  select() {
    this.ask("select", { filters: this.filters, sort: this.sort[0], down: this.sort[1] });
  }

  on_select(m) {
    this.n = m.n;
    this.rows = new Map(m.rows.map((row, i) => [i, row]));
    this.asked = new Set([0]);
    const selected = this.current && this.current.row.id;
    this.cursor = m.rows.findIndex(row => row.id === selected);
    this.scroll.scrollTop = 0;
    this.table.setAttribute("aria-rowcount", m.n + 1);
    this.say(`${count(m.n)} of ${count(this.model.get("facts").total)} mails`);
    this.exporter.textContent = `Export ${count(m.n)} ${m.n === 1 ? "row" : "rows"}`;
    this.empty.hidden = m.n > 0;
    this.drawRows();
  }

  on_page(m) {
    m.rows.forEach((row, i) => this.rows.set(m.start + i, row));
    this.asked.delete(m.start);
    this.drawRows();
    const row = this.rows.get(this.cursor);
    if (row && (!this.current || this.current.row.id !== row.id)) this.open(row);
  }

  on_detail(m) {
    this.current = m;
    this.showMail();
    if (m.why) this.later("why", 200, () => this.ask("why", { id: m.row.id }));
  }

  on_why(m) {
    if (!m.why || !this.current || this.current.row.id !== m.id) return;
    this.current.reasons = m.why;
    this.showReasons();
  }

  on_correct(m) {
    const { answer, predicted } = m.row;
    this.say(answer === predicted ? `${answer}: confirmed. u undoes.` : `Now ${answer}${predicted ? `, not ${predicted}` : ""}. u undoes.`);
  }

  on_undo(m) {
    this.say(m.row ? "Undone." : "There is nothing to undo.");
  }

  on_export(m) {
    this.say(`${count(m.n)} rows written to ${m.path}: ids, numbers and labels, no text.`);
  }

  // ---- building
  build(el) {
    this.root = make("div", { name: "trm-inbox", "data-lm-suppress-shortcuts": "true", role: "region", "aria-label": "Inbox" });
    this.root.addEventListener("keydown", event => this.key(event));
    this.buildFilters();
    this.buildTable();
    this.status = make("span", { name: "status", role: "status", "aria-live": "polite" });
    this.path = make("input", { type: "text", value: "inbox.csv", "aria-label": "File to export to, .csv or .parquet", spellcheck: "false" });
    this.exporter = make("button", { type: "button", text: "Export" });
    this.exporter.addEventListener("click", () => this.ask("export", { path: this.path.value }));
    const keys = make("button", { type: "button", text: "Keys", "aria-expanded": "false" });
    this.help = make("dl", { name: "help", hidden: true }, ...HELP.flatMap(([key, what]) => [make("dt", { text: key }), make("dd", { text: what })]));
    this.toggleHelp = () => { this.help.hidden = !this.help.hidden; keys.setAttribute("aria-expanded", String(!this.help.hidden)); };
    keys.addEventListener("click", this.toggleHelp);
    this.mail = make("div", { name: "mail", tabindex: "0", role: "region", "aria-label": "Text of the mail" });
    this.side = make("div", { name: "side" });
    this.pane = make("div", { name: "pane", hidden: true }, this.mail, this.side);
    this.root.append(this.bar, this.scroll, make("div", { name: "foot" }, this.status, this.path, this.exporter, keys), this.help, this.pane);
    el.append(this.root);
  }

  buildFilters() {
    this.search = make("input", { type: "search", placeholder: "Search subject and sender", "aria-label": "Search subject and sender" });
    this.search.addEventListener("input", () => this.later("search", 200, () => this.filter({ words: this.search.value })));
    const number = (value, label) => make("input", { type: "number", min: 0, max: 100, step: 5, value, "aria-label": label });
    this.low = number(0, "Least confidence in percent");
    this.high = number(100, "Largest confidence in percent");
    const limits = () => {
      const [low, high] = [this.low, this.high].map(i => Math.min(100, Math.max(0, Number(i.value) || 0)) / 100);
      if (low <= high) this.filter({ low, high });
      else this.say("The first number must not be above the second.", true);
    };
    for (const input of [this.low, this.high]) input.addEventListener("change", limits);
    this.range = make("span", { name: "range" }, "Sure from ", this.low, " to ", this.high, " %");
    this.chips = make("div", { name: "chips" });
    this.bar = make("div", { name: "bar-top" }, make("div", { name: "line" }, this.search, this.range), this.chips);
  }

  buildTable() {
    this.columns = make("colgroup");
    this.head = make("tr");
    this.body = make("tbody");
    this.table = make("table", { role: "grid", tabindex: "0", "aria-label": "Mails", "aria-rowcount": "1" }, this.columns, make("thead", {}, this.head), this.body);
    this.empty = make("p", { name: "empty", text: "No mail passes these filters.", hidden: true });
    this.scroll = make("div", { name: "scroll" }, this.table, this.empty);
    this.scroll.addEventListener("scroll", () => {
      if (this.drawing) return;
      this.drawing = requestAnimationFrame(() => { this.drawing = null; this.drawRows(); });
    });
    this.body.addEventListener("click", event => {
      const row = event.target.closest("tr[data-n]");
      if (row) { this.table.focus({ preventScroll: true }); this.choose(Number(row.dataset.n)); }
    });
  }

  chip(text, n, pressed, action) {
    const chip = make("button", { type: "button", name: "chip", "aria-pressed": String(pressed) }, make("span", { text: plain(text) }), make("span", { name: "n", text: count(n) }));
    chip.addEventListener("click", action);
    return chip;
  }

  showFacts() {
    const facts = this.model.get("facts"), f = this.filters, held = document.activeElement;
    const spot = this.chips.contains(held) ? [...this.chips.querySelectorAll("button")].indexOf(held) : -1;
    const group = (label, key, items) => items.length < 2 ? [] : [make("div", { name: "group", role: "group", "aria-label": label }, make("span", { name: "label", text: label }),
      ...items.map(([value, n]) => this.chip(value, n, f[key].includes(value), () => this.toggle(key, value))))];
    const only = [["disagree", "model disagrees", facts.disagree], ["corrected", "corrected", facts.said]]
      .map(([key, text, n]) => this.chip(text, n, f[key], () => this.filter({ [key]: !this.filters[key] })));
    this.chips.replaceChildren(...group("Category", "categories", facts.categories.map(([c, , n]) => [c, n])), ...group("Action", "actions", facts.actions),
      ...group("Language", "languages", facts.languages), make("div", { name: "group", role: "group", "aria-label": "Only" }, make("span", { name: "label", text: "Only" }), ...only));
    if (spot >= 0) this.chips.querySelectorAll("button")[spot]?.focus();
    const undo = this.side.querySelector(".undo");
    if (undo) undo.disabled = !facts.undo;
    this.range.hidden = !facts.confidence;
    this.shown = COLUMNS.filter(([, , , need]) => !need || (need === "actions" ? facts.actions.length : facts[need]));
    const before = this.head.children.length;
    if (before !== this.shown.length) this.showHead();
  }

  showHead() {
    this.columns.replaceChildren(...this.shown.map(([, , width]) => { const col = make("col"); col.style.width = width; return col; }));
    this.head.replaceChildren(...this.shown.map(([name, title]) => {
      const button = make("button", { type: "button", text: title });
      button.addEventListener("click", () => this.order(name));
      return make("th", { scope: "col", name: `col-${name}`, "aria-sort": this.sort[0] !== name ? "none" : this.sort[1] ? "descending" : "ascending" }, button);
    }));
  }

  // ---- filters and order
  filter(changes) {
    Object.assign(this.filters, changes);
    this.showFacts();
    this.select();
  }

  toggle(key, value) {
    const now = this.filters[key];
    this.filter({ [key]: now.includes(value) ? now.filter(v => v !== value) : [...now, value] });
  }

  order(name) {
    const first = ["time", "confidence", "steps"].includes(name); // These begin with the largest
    this.sort = [name, this.sort[0] === name ? !this.sort[1] : first];
    const spot = this.shown.findIndex(c => c[0] === name);
    this.showHead();
    this.head.children[spot].firstChild.focus();
    this.select();
  }

  // ---- rows
  place() { // Where the table stands: [first row seen, rows that fit, height of all, scaled]
    const high = Math.max(ROW, this.scroll.clientHeight - this.head.offsetHeight), fit = Math.ceil(high / ROW), total = Math.min(this.n * ROW, TALLEST);
    const scaled = this.n * ROW > TALLEST, top = this.scroll.scrollTop;
    return [scaled ? Math.round(top / (total - high) * (this.n - fit + 1)) : Math.floor(top / ROW), fit, total, scaled];
  }

  drawRows() {
    const [first, fit, total, scaled] = this.place();
    const from = Math.max(0, first - AHEAD), to = Math.min(this.n, first + fit + AHEAD);
    const above = Math.min(scaled ? Math.max(0, this.scroll.scrollTop - (first - from) * ROW) : from * ROW, total);
    const spacer = height => { const row = make("tr", { name: "spacer", "aria-hidden": "true" }); row.style.height = `${height}px`; return row; };
    const drawn = [];
    for (let n = from; n < to; n++) drawn.push(this.drawRow(n));
    this.body.replaceChildren(spacer(above), ...drawn, spacer(Math.max(0, total - above - drawn.length * ROW)));
    if (this.cursor >= from && this.cursor < to) this.table.setAttribute("aria-activedescendant", `${this.view}-${this.cursor}`);
    else this.table.removeAttribute("aria-activedescendant");
    if (this.n) this.load(from, to);
  }

  load(from, to) { // Pages that are missing; while the table flies by, none
    const wanted = [];
    for (let start = Math.floor(from / PAGE) * PAGE; start < to; start += PAGE) {
      const rest = Math.min(start + PAGE, this.n);
      if (!this.rows.has(start) || !this.rows.has(rest - 1)) if (!this.asked.has(start)) wanted.push(start);
    }
    if (!wanted.length) return;
    this.later("load", 60, () => {
      if (this.rows.size > 40 * PAGE) this.rows.clear(); // What was scrolled past long ago is asked for again
      for (const start of wanted) { this.asked.add(start); this.ask("page", { start, stop: start + PAGE }); }
    });
  }

  drawRow(n) {
    const row = this.rows.get(n);
    const line = make("tr", { id: `${this.view}-${n}`, "data-n": n, "aria-rowindex": n + 2, "aria-selected": String(n === this.cursor), name: row ? "" : "loading" });
    for (const [name] of this.shown) line.append(row ? this.cell(name, row) : make("td", { text: name === "subject" ? "…" : "" }));
    return line;
  }

  cell(name, row) {
    const cell = make("td", { name: `col-${name}` });
    if (name === "time") cell.textContent = moment(row.time);
    else if (name === "sender") { cell.textContent = person(row.sender); cell.title = row.sender || ""; }
    else if (name === "subject") { cell.textContent = row.subject || "(no subject)"; cell.title = row.subject || ""; }
    else if (name === "answer") {
      if (row.said) cell.append(make("span", { name: "hand", text: row.said === row.predicted ? "✓ " : "✎ ", title: row.said === row.predicted ? "confirmed" : "corrected" }));
      cell.append(row.answer || "");
    } else if (name === "confidence" && row.confidence !== null) {
      const fill = make("i");
      fill.style.width = `${100 * row.confidence}%`;
      cell.append(make("span", { name: "bar", "aria-hidden": "true" }, fill), make("span", { name: "number", text: percent(row.confidence) }));
    } else if (name === "label") {
      cell.textContent = row.label ? (row.predicted && row.label !== row.predicted ? `≠ ${row.label}` : row.label) : "";
      if (row.differs) cell.classList.add("differs");
    } else cell.textContent = row[name] === null || row[name] === undefined ? "" : plain(String(row[name]));
    return cell;
  }

  update(row) { // A row has changed, here or in another view
    for (const [n, old] of this.rows) if (old.id === row.id) this.rows.set(n, row);
    if (this.current && this.current.row.id === row.id) { this.current.row = row; this.showSide(); }
    this.drawRows();
  }

  choose(n) {
    if (!this.n) return;
    this.cursor = Math.min(this.n - 1, Math.max(0, n));
    this.reveal();
    this.drawRows();
    const row = this.rows.get(this.cursor);
    if (row) this.open(row);
  }

  open(row) {
    clearTimeout(this.timers.why);
    this.latest.why = 0; // What was asked about another mail is stale
    this.model.set("selected", row.id);
    this.model.save_changes();
    this.later("detail", 40, () => this.ask("detail", { id: row.id }));
  }

  reveal() {
    const [first, fit, total, scaled] = this.place(), high = this.scroll.clientHeight - this.head.offsetHeight;
    if (scaled) {
      if (this.cursor < first || this.cursor > first + fit - 2) this.scroll.scrollTop = this.cursor / (this.n - fit + 1) * (total - high);
    } else if (this.cursor * ROW < this.scroll.scrollTop) this.scroll.scrollTop = this.cursor * ROW;
    else if ((this.cursor + 1) * ROW > this.scroll.scrollTop + high) this.scroll.scrollTop = (this.cursor + 1) * ROW - high;
  }

  // ---- a mail
  showMail() {
    const m = this.current, lines = [["from", m.sender], ["date", moment(m.row.time)], ["language", m.row.language]];
    this.pane.hidden = false;
    this.subject = make("div", { name: "subject", role: "heading", "aria-level": "3", text: m.subject || "(no subject)" });
    this.from = make("span", { text: m.sender });
    this.zones = make("div", { name: "zones" }, ...zoneBlocks(m.zones));
    this.mail.replaceChildren(this.subject, make("div", { name: "about" }, this.from, ...lines.slice(1).filter(l => l[1]).map(([, text]) => make("span", { text }))), this.zones);
    this.mail.scrollTop = 0;
    this.reason = make("div", { name: m.why ? "reason" : "" }, ...(m.why ? [make("p", { name: "note", text: "asking the model why …" })] : []));
    this.showSide();
  }

  showSide() {
    const { row, probabilities } = this.current, facts = this.model.get("facts");
    const sure = row.confidence === null ? "" : ` ${percent(row.confidence)}`, parts = [];
    if (row.predicted) parts.push(make("div", { name: "verdict" }, make("strong", { text: row.predicted }), make("span", { text: `${sure} sure${row.steps ? `, ${row.steps} ${row.steps === 1 ? "step" : "steps"}` : ""}` })));
    const others = [];
    if (row.said) others.push(row.said === row.predicted ? "You confirmed this." : `You said ${row.said}.`);
    if (row.label && row.label !== row.predicted) others.push(`The mail's label is ${row.label}.`);
    if (row.action) others.push(`Foretold action: ${plain(row.action)}${row.priority === null ? "" : `, priority ${row.priority.toFixed(2)}`}.`);
    if (others.length) parts.push(make("p", { name: "note", text: others.join(" ") }));
    if (Object.keys(probabilities).length) parts.push(bars(probabilities));
    const buttons = facts.categories.filter(([c]) => c in probabilities || !Object.keys(probabilities).length).map(([c, key]) => {
      const button = make("button", { type: "button", "aria-pressed": String(c === row.said), "data-category": c }, ...(key ? [make("kbd", { text: key })] : []), make("span", { text: c }));
      button.addEventListener("click", () => this.correct(c));
      return button;
    });
    const undo = make("button", { type: "button", name: "undo", disabled: !facts.undo }, make("kbd", { text: "u" }), make("span", { text: "undo" }));
    undo.addEventListener("click", () => this.ask("undo"));
    const held = this.side.contains(document.activeElement) && document.activeElement.dataset.category;
    this.side.replaceChildren(...parts, this.reason, make("div", { name: "choose", role: "group", "aria-label": "It should be" }, make("span", { name: "label", text: "It should be" }), ...buttons, undo),
      ...(facts.apart ? [make("p", { name: "note", text: "Synthetic mail: what you say here is forgotten when the session ends." })] : []));
    if (held) this.side.querySelector(`[data-category="${CSS.escape(held)}"]`)?.focus();
    if (this.current.reasons && !this.reason.querySelector("svg")) this.showReasons();
  }

  showReasons() {
    const why = this.current.reasons, place = this.mail.scrollTop;
    const text = kind => why.zones.find(([name]) => name === kind)?.[1];
    if (text("subject")) this.subject.replaceChildren(...text("subject").map(piece));
    if (text("sender")) this.from.replaceChildren(...text("sender").map(piece));
    this.zones.replaceChildren(...zoneBlocks(why.zones));
    this.mail.scrollTop = place;
    this.reason.replaceChildren(make("div", { name: "label", text: "Belief after each recursion step" }), plot(why),
      make("p", { name: "note" }, make("mark", { name: "for", text: "Blue" }), ` words speak for ${why.category}, `, make("mark", { name: "against", text: "orange, underlined" }), " ones against it."));
  }

  correct(category) {
    if (!this.current) this.say("Choose a mail first.", true);
    else this.ask("correct", { id: this.current.row.id, category });
  }

  // ---- keys
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    const typing = event.target.closest("input, select, textarea"), key = event.key;
    if (key === "Escape") { if (!this.help.hidden) this.toggleHelp(); this.table.focus(); event.preventDefault(); return; }
    if (typing || ((key === "Enter" || key === " ") && event.target.closest("button"))) return;
    const reading = event.target.closest(".mail"); // There, arrows scroll
    const jump = Math.max(1, this.place()[1] - 2), moves = { j: 1, k: -1, ...(reading ? {} : { ArrowDown: 1, ArrowUp: -1, PageDown: jump, PageUp: -jump, Home: -Infinity, End: Infinity }) };
    const category = this.model.get("facts").categories.find(([, own]) => own && own === key);
    if (key in moves) this.choose(this.cursor < 0 && moves[key] < this.n ? Math.max(0, moves[key] - 1) : this.cursor + moves[key]);
    else if (category) this.correct(category[0]);
    else if (key === "u") this.ask("undo");
    else if (key === "/") this.search.focus();
    else if (key === "?") this.toggleHelp();
    else return;
    event.preventDefault();
  }

  say(text, wrong = false) {
    this.status.textContent = this.told = text;
    this.status.classList.toggle("wrong", wrong);
  }
}

function render({ model, el }) {
  const inbox = new Inbox(model, el);
  return () => inbox.close();
}

export default { render };
