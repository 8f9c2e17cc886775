"use strict";
const $ = id => document.getElementById(id);
const EXAMPLE = { sender: "Karlsson Store <orders@karlsson-store.example>", subject: "Your order 20417 has shipped",
  body: "Hello,\n\nyour parcel left our warehouse today and should reach you on Thursday.\nTrack it: https://karlsson-store.example/track/20417\n\nThank you for shopping with us!" };
let last = null;

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}
const percent = p => `${(100 * p).toFixed(1)} %`;

function bars(place, rows) { // rows: [label, probability, strong]
  place.replaceChildren();
  for (const [label, p, strong] of rows) {
    const track = make("span", undefined, "bar"), fill = make("i");
    fill.style.width = `${100 * p}%`;
    track.append(fill);
    track.setAttribute("aria-hidden", "true");
    place.append(make("span", label, strong ? "top" : ""), track, make("span", percent(p), strong ? "top" : ""));
  }
}

async function ask(path, body, type = "application/json") {
  const headers = body === undefined ? {} : { "Content-Type": type }, key = $("key").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body });
  const found = await answer.json();
  if (answer.status === 401) $("keyfield").hidden = false;
  if (!answer.ok) throw new Error([found.detail, found.remedy].filter(Boolean).join(": "));
  return found;
}

const isSource = text => /^(From |[A-Za-z][A-Za-z0-9-]*:[ \t].*\r?\n)/.test(text) && /^(From|Subject|Received|Date|Return-Path|Delivered-To|To):/im.test(text);

async function sort() {
  const text = $("body").value.trimStart();
  if (isSource(text)) {
    const found = await ask("/v1/classify/raw?parsed=true", new TextEncoder().encode(text), "message/rfc822");
    return [found.email, found.prediction];
  }
  const mail = { sender: $("sender").value, subject: $("subject").value, body: $("body").value };
  const found = await ask("/v1/classify", JSON.stringify({ emails: [mail] }));
  return [mail, found.predictions[0]];
}

function showAnswer(found) {
  $("category").textContent = found.category;
  $("confidence").textContent = `${percent(found.confidence)} sure, ${found.steps} ${found.steps === 1 ? "step" : "steps"}`;
  $("ask").hidden = !found.ask;
  const rows = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 5);
  bars($("bars"), rows.map(([name, p], i) => [name, p, i === 0]));
  $("should").value = found.category;
  $("result").hidden = false;
}

function showWords(why) {
  const most = Math.max(1e-9, ...why.words.map(w => Math.abs(w.score)));
  bars($("steps"), why.beliefs.map(b => [`step ${b.step}${b.step === why.halted_at ? ", answered" : ""}`, b.probabilities[why.category], b.step === why.halted_at]));
  $("thinking").textContent = `Probability of ${why.category} after each pass over the mail.`;
  $("legend").textContent = `Blue words speak for ${why.category}; orange, underlined ones against it. The stronger, the more they moved.`;
  const place = $("words");
  place.replaceChildren();
  let zone = null, line = null;
  for (const word of why.words) {
    if (word.zone !== zone) {
      line = make("p");
      line.append(make("span", word.zone, "zone"));
      place.append(line);
      zone = word.zone;
    }
    const part = Math.abs(word.score) / most;
    let piece = document.createTextNode(word.text);
    if (part >= .04) {
      piece = make("mark", word.text, word.score < 0 ? "against" : "");
      piece.style.setProperty("--much", (.1 + .4 * part).toFixed(2));
      piece.title = `${word.score > 0 ? "+" : ""}${word.score.toFixed(2)}`;
    }
    line.append(piece, " ");
  }
  if (!why.words.length) place.append(make("p", "(no words)"));
}

function trouble(error) {
  $("trouble").textContent = error ? error.message : "";
  $("trouble").hidden = !error;
}

async function run(work) {
  const buttons = document.querySelectorAll("button");
  buttons.forEach(b => { b.disabled = true; });
  trouble(null);
  try { await work(); } catch (error) { trouble(error); }
  buttons.forEach(b => { b.disabled = false; });
}

async function about() {
  const found = await ask("/v1/model"), now = found.current;
  $("about").textContent = `Model ${now.version}: ${(now.parameters / 1e6).toFixed(1)} million parameters, at most ${now.max_steps} steps.`;
  $("should").replaceChildren(...now.categories.map(name => make("option", name)));
  $("correct").hidden = !found.feedback;
}

$("form").addEventListener("submit", event => {
  event.preventDefault();
  run(async () => {
    if (!$("should").options.length) await about();
    const [mail, found] = await sort();
    last = mail;
    showAnswer(found);
    showWords(await ask("/v1/explain", JSON.stringify({ email: mail, category: found.category })));
  });
});
$("example").addEventListener("click", () => {
  for (const name of Object.keys(EXAMPLE)) $(name).value = EXAMPLE[name];
  $("form").requestSubmit();
});
$("keep").addEventListener("click", () => run(async () => {
  const found = await ask("/v1/feedback", JSON.stringify({ email: last, category: $("should").value }));
  $("kept").textContent = `Kept. Corrections so far: ${found.stored}.`;
}));
about().catch(error => { $("about").textContent = error.message; });
if (location.hash === "#example") $("example").click();
