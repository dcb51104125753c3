// The page: its two views, what they ask for, and who writes.

import { ApiError, listModels, setKey, trace, write } from "./api.js";
import { Chat, sendOnEnter } from "./chat.js";
import { makeLink, readLink, readSettings } from "./settings.js";
import { Text } from "./text.js";

// Characters around a selection that are sent with it, as they decide how it is cut into tokens.
const CONTEXT = 200;
// What only one of the views shows.
const ONLY_TEXT = ["prompt", "prompt-label", "other-field", "share", "shade-field", "texts"];
const ONLY_CHAT = ["chat", "message-field", "system-field", "clear"];

const find = (id) => document.getElementById(id);
const form = find("form");
const fields = form.elements;
const chat = new Chat(() => run([answer]));

let models = [];
let texts = [];
let traces = false;
let isChat = false;
let writing = null;

async function begin() {
  readLink();
  try {
    const { data, traces: isThere } = await listModels();
    models = data;
    traces = isThere === true;
    find("key-label").hidden = true;
    find("served").textContent = data.map((model) => model.id).join(", ");
    offerModels(data);
    offerChat(data);
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

function offerChat(data) {
  const canChat = data.some((model) => model.chat);
  find("views").hidden = !canChat;
  find("no-chat").hidden = canChat;
  const who = data.length === 1 ? "the model's folder has" : "the models' folders have";
  find("no-chat").textContent = `No chat: ${who} no chat template.`;
  if (!canChat) show(false);
}

// Show the chat, or texts.
function show(wantsChat) {
  stop();
  tell(null);
  say("");
  isChat = wantsChat;
  ONLY_TEXT.forEach((id) => (find(id).hidden = isChat));
  ONLY_CHAT.forEach((id) => (find(id).hidden = !isChat));
  document.body.classList.toggle("chatting", isChat);
  // The buttons come after what they are for; in a chat the settings come last.
  if (isChat) find("message-field").after(find("actions"));
  else form.append(find("actions"));
  find("write").textContent = isChat ? "Send" : "Write";
  find("to-text").ariaPressed = String(!isChat);
  find("to-chat").ariaPressed = String(isChat);
  for (const option of fields.model.options) {
    const hasChat = models.find((model) => model.id === option.value).chat;
    option.disabled = isChat && !hasChat;
    option.text = option.disabled ? `${option.value}: no chat template` : option.value;
  }
  if (fields.model.selectedOptions[0]?.disabled) {
    fields.model.value = models.find((model) => model.chat).id;
  }
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

function begins(event) {
  event.preventDefault();
  if (isChat) return send();
  const names = [fields.model.value];
  if (fields.other.value) names.push(fields.other.value);
  const options = { traces, onBranch: branch, onBack: stop, onTrace: traceText };
  texts = names.map((name) => new Text(name, options));
  find("texts").replaceChildren(...texts.map((text) => text.element));
  const prompt = fields.prompt.value;
  texts.forEach((text) => text.start(prompt));
  texts[0].element.scrollIntoView({ block: "nearest" });
  return run(texts.map((text) => follow(text, prompt)));
}

function send() {
  const message = find("message").value;
  find("message").focus();
  if (writing || !message.trim()) return;
  find("message").value = "";
  chat.send(message);
}

function stop() {
  writing?.abort();
}

function branch(text, ids) {
  return run([follow(text, ids)]);
}

// Let texts be written, side by side, until all have ended or are stopped. Each job is called with
// the settings, what stops it, and what it tells how many tokens came.
async function run(jobs) {
  stop();
  const own = (writing = new AbortController());
  const started = performance.now();
  let count = 0;
  let error = null;
  const settings = readSettings(isChat ? chat.tries : 0);
  tell(null);
  find("stop").disabled = false;
  find("write").disabled = isChat;
  say("Writing …");
  const add = (more) => (count += more);
  await Promise.all(
    jobs.map((job) => job(settings, own.signal, add).catch((found) => (error ??= found))),
  );
  if (writing !== own) return;
  writing = null;
  find("stop").disabled = true;
  find("write").disabled = false;
  if (error && !own.signal.aborted) {
    tell(error);
    return;
  }
  const seconds = (performance.now() - started) / 1000;
  const state = own.signal.aborted ? "Stopped" : "Done";
  const speed = (count / seconds).toFixed(count / seconds < 10 ? 1 : 0);
  say(`${state}: ${count} tokens in ${seconds.toFixed(1)} s, ${speed} a second; seed ${settings.seed}`);
}

// The job that adds to a text what is written.
function follow(text, prompt) {
  return async (settings, signal, count) => {
    for await (const part of write(text.model, prompt, settings, signal)) {
      text.promptIds ??= part.prompt;
      text.take(part);
      count(part.tokens.length);
    }
  };
}

// The job that writes the next message of the chat.
function answer(settings, signal, count) {
  return chat.write(fields.model.value, settings, signal, count);
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
find("message").addEventListener("keydown", (event) => {
  if (!event.ctrlKey && !event.metaKey) sendOnEnter(event, form);
});
find("stop").addEventListener("click", stop);
find("share").addEventListener("click", share);
find("clear").addEventListener("click", () => {
  stop();
  chat.clear();
  find("message").focus();
});
find("to-text").addEventListener("click", () => show(false));
find("to-chat").addEventListener("click", () => show(true));
find("key").addEventListener("change", () => {
  setKey(find("key").value);
  begin();
});
find("shade").addEventListener("change", (event) =>
  find("texts").classList.toggle("shaded", event.target.checked),
);
find("texts").classList.toggle("shaded", find("shade").checked);
document.addEventListener("selectionchange", () => texts.forEach((text) => text.noteSelection()));
window.addEventListener("hashchange", readLink);
begin();
