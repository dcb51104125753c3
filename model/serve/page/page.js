// The page: what is asked for, who writes, and the link that asks for the same again.

import { ApiError, listModels, setKey, trace, write } from "./api.js";
import { Text } from "./text.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens"];
// Characters around a selection that are sent with it, as they decide how it is cut into tokens.
const CONTEXT = 200;

const find = (id) => document.getElementById(id);
const form = find("form");
const fields = form.elements;

let texts = [];
let traces = false;
let lastSeed = null;
let writing = null;

async function begin() {
  readLink();
  try {
    const { data, traces: isThere } = await listModels();
    traces = isThere === true;
    find("key-label").hidden = true;
    find("served").textContent = data.map((model) => model.id).join(", ");
    offerModels(data);
    readLink();
  } catch (error) {
    tell(error);
  }
}

function offerModels(data) {
  const options = (list) => list.map((id) => new Option(id, id));
  const ids = data.map((model) => model.id);
  fields.model.replaceChildren(...options(ids));
  fields.other.replaceChildren(new Option("nothing", ""), ...options(ids));
  find("models").hidden = ids.length < 2;
  const shortest = Math.min(...data.map((model) => model.max_model_len));
  fields.max_tokens.value = Math.min(fields.max_tokens.value, Math.floor(shortest / 2));
}

// The settings that a link carries: all of the form but the key.
function readLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of given) {
    const field = fields.namedItem(name);
    if (field && name === field.name) field.value = value;
  }
  if (given.size > 1) find("settings").open = true;
}

function makeLink() {
  const link = new URLSearchParams();
  for (const name of ["prompt", ...NUMBERS, "seed", "model", "other"]) {
    const value = name === "seed" ? fields.seed.value || lastSeed : fields[name].value;
    if (value !== null && value !== "") link.set(name, value);
  }
  return `#${link}`;
}

async function share() {
  history.replaceState(null, "", makeLink());
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied. It has the prompt and the settings, and no key.");
  } catch {
    say("The link is in the address bar. It has the prompt and the settings, and no key.");
  }
}

function readSettings() {
  const settings = Object.fromEntries(NUMBERS.map((name) => [name, Number(fields[name].value)]));
  lastSeed = fields.seed.value || String(Math.floor(Math.random() * 2 ** 32));
  return { ...settings, seed: Number(lastSeed) };
}

function begins(event) {
  event.preventDefault();
  const models = [fields.model.value];
  if (fields.other.value) models.push(fields.other.value);
  const options = { traces, onBranch: branch, onBack: stop, onTrace: traceText };
  texts = models.map((model) => new Text(model, options));
  find("texts").replaceChildren(...texts.map((text) => text.element));
  const prompt = fields.prompt.value;
  texts.forEach((text) => text.start(prompt));
  texts[0].element.scrollIntoView({ block: "nearest" });
  return run(texts.map((text) => [text, prompt]));
}

function stop() {
  writing?.abort();
}

function branch(text, ids) {
  return run([[text, ids]]);
}

// Let texts be written, side by side, until all have ended or are stopped.
async function run(jobs) {
  stop();
  const own = (writing = new AbortController());
  const settings = readSettings();
  const started = performance.now();
  tell(null);
  find("stop").disabled = false;
  say("Writing …");
  const counts = await Promise.all(
    jobs.map(([text, prompt]) => follow(text, prompt, settings, own.signal)),
  );
  if (writing !== own) return;
  writing = null;
  find("stop").disabled = true;
  const seconds = (performance.now() - started) / 1000;
  const count = counts.reduce((sum, one) => sum + one, 0);
  const state = own.signal.aborted ? "Stopped" : "Done";
  const speed = (count / seconds).toFixed(count / seconds < 10 ? 1 : 0);
  say(`${state}: ${count} tokens in ${seconds.toFixed(1)} s, ${speed} a second; seed ${lastSeed}`);
}

// Add to a text what is written; how many tokens that were.
async function follow(text, prompt, settings, signal) {
  let count = 0;
  try {
    for await (const part of write(text.model, prompt, settings, signal)) {
      text.promptIds ??= part.prompt;
      part.tokens.forEach((token) => text.add(token));
      count += part.tokens.length;
      if (part.ended) text.end(part.ended);
    }
  } catch (error) {
    if (!signal.aborted) tell(error);
  }
  return count;
}

async function traceText(text) {
  const [from, to] = text.chosen;
  const whole = text.text;
  const isPart = to - from < whole.length;
  const first = isPart ? Math.max(from - CONTEXT, 0) : 0;
  const sent = isPart ? whole.slice(first, to + CONTEXT) : whole;
  // The server counts characters, JavaScript units of UTF-16.
  const count = (units) => [...sent.slice(0, units)].length;
  const units = (characters) => first + [...sent].slice(0, characters).join("").length;
  tell(null);
  say("Looking …");
  try {
    const answer = await trace(sent, count(from - first), count(to - first));
    for (const passage of answer.passages) {
      passage.start = units(passage.start);
      passage.stop = units(passage.stop);
    }
    text.showSources(answer);
    const found = answer.passages.length;
    say(`${found} ${found === 1 ? "passage is" : "passages are"} in the training data.`);
  } catch (error) {
    tell(error);
  }
}

// Show an error, or that there is none.
function tell(error) {
  find("error").textContent = error ? error.message : "";
  if (!error) return;
  say("");
  if (error instanceof ApiError && error.status === 401) {
    find("key-label").hidden = false;
    find("key").focus();
  }
}

function say(line) {
  find("status").textContent = line;
}

form.addEventListener("submit", begins);
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
find("stop").addEventListener("click", stop);
find("share").addEventListener("click", share);
find("key").addEventListener("change", () => {
  setKey(find("key").value);
  begin();
});
find("shade").addEventListener("change", (event) =>
  find("texts").classList.toggle("shaded", event.target.checked),
);
find("texts").classList.toggle("shaded", find("shade").checked);
window.addEventListener("hashchange", readLink);
begin();
