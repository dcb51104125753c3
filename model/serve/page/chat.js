// The chat: its turns, of which the last message can be edited and the last answer written again.
//
// Whatever comes from a model is put in by textContent: it is text, never markup.

import { answer } from "./api.js";

const ENDINGS = {
  length: "Cut: it has as many new tokens as the settings allow.",
  context: "Cut: the model's context is full.",
  time: "Cut: the server's time for an answer is over.",
  shutdown: "Cut: the server has ended.",
  stopped: "Stopped.",
};
const UNANSWERED = "Not answered, so the model is not given it.";
// The server's word for a prompt that leaves no room for as many new tokens as are asked for.
const FULL = "context_length_exceeded";
// How near to the end of the page counts as being there.
const END_PIXELS = 120;

const find = (id) => document.getElementById(id);
const clone = (id) => find(id).content.firstElementChild.cloneNode(true);

export class Chat {
  // `onAsk()` lets the next message be written, which is `write`.
  constructor(onAsk) {
    this.onAsk = onAsk;
    this.turns = []; // {role, content, element}
    this.editing = null;
    // How often the last message was answered anew.
    this.tries = 0;
    // The model that answers, and the first turn that it is given: its context holds no more.
    this.model = null;
    this.first = 0;
  }

  // What the template is given, so that the last turn can be written: the turns that fit, but no
  // message that was not answered. Templates expect the roles by turns.
  get messages() {
    const turns = this.turns
      .slice(this.first, -1)
      .filter(({ role }, place, all) => all[place + 1]?.role !== role)
      .map(({ role, content }) => ({ role, content }));
    const system = find("system").value;
    return system ? [{ role: "system", content: system }, ...turns] : turns;
  }

  send(text) {
    this.closeEditing();
    this.tries = 0;
    const last = this.turns.at(-1);
    if (last?.role === "user") note(last, UNANSWERED);
    this.add("user", "You", text);
    this.ask();
  }

  // Drop the last answer, and ask for another one.
  again() {
    this.closeEditing();
    this.drop(this.turns.length - 1);
    this.tries += 1;
    this.turns.at(-1).element.focus({ preventScroll: true });
    this.ask();
  }

  ask() {
    this.offer(false);
    find("answered").textContent = "";
    this.onAsk();
    this.turns.at(-1).element.scrollIntoView({ block: "nearest" });
  }

  clear() {
    this.closeEditing();
    this.drop(0);
    find("answered").textContent = "";
  }

  add(role, name, content) {
    const element = clone("turn");
    element.classList.add(role);
    element.tabIndex = -1;
    element.querySelector("h2").textContent = name;
    element.querySelector(".said").textContent = content;
    const button = element.querySelector("button");
    button.textContent = role === "user" ? "Edit" : "Answer again";
    button.addEventListener("click", () => (role === "user" ? this.edit() : this.again()));
    const turn = { role, content, element };
    this.turns.push(turn);
    find("turns").append(element);
    find("no-turns").hidden = true;
    return turn;
  }

  drop(place) {
    this.turns.splice(place).forEach(({ element }) => element.remove());
    this.first = Math.min(this.first, place);
    find("no-turns").hidden = this.turns.length > 0;
  }

  // Offer to change the last message and the last answer, or nothing of the kind.
  offer(isOffered) {
    const last = this.turns.findLast(({ role }) => role === "user");
    for (const turn of this.turns) {
      const isLast = turn === last || turn === this.turns.at(-1);
      turn.element.querySelector(".buttons").hidden = !(isOffered && isLast);
    }
  }

  // Write the next message; `count` is told of its tokens. A message of which nothing came is none.
  async write(model, settings, signal, count) {
    this.beginAt(model === this.model ? this.first : 0);
    this.model = model;
    const turn = this.add("assistant", model, "");
    const text = turn.element.querySelector(".said");
    text.append("");
    turn.element.classList.add("writing");
    let ended = null;
    try {
      for await (const part of this.fit(settings, signal)) {
        turn.content += part.text;
        keepingEnd(() => text.lastChild.appendData(part.text));
        count(part.count);
        ended ??= part.ended;
      }
    } finally {
      turn.element.classList.remove("writing");
      if (signal.aborted) ended = "stopped";
      if (this.turns.includes(turn)) keepingEnd(() => this.end(turn, ended));
    }
  }

  // Parts of the answer; as long as there is no room for one, without the oldest turns.
  async *fit(settings, signal) {
    const first = this.first;
    for (;;) {
      try {
        yield* answer(this.model, this.messages, settings, signal);
        return;
      } catch (error) {
        if (error.code !== FULL || signal.aborted) throw error;
        const next = this.turns.findIndex(({ role }, n) => n > this.first && role === "user");
        this.beginAt(next < 0 ? first : next);
        if (next < 0) throw error;
      }
    }
  }

  // Give the model the turns from this one on, which the page says.
  beginAt(first) {
    this.first = first;
    this.turns.forEach(({ element }, place) => {
      element.querySelector(".forgotten").hidden = !first || place !== first;
    });
  }

  end(turn, ended) {
    if (!turn.content && (!ended || ended === "stopped")) {
      this.drop(this.turns.length - 1);
    } else {
      note(turn, turn.content ? ENDINGS[ended] : "The model ended its answer without a word.");
      find("answered").textContent = turn.content;
    }
    this.offer(true);
  }

  edit() {
    const place = this.turns.findLastIndex(({ role }) => role === "user");
    const { element, content } = this.turns[place];
    const form = clone("editing");
    const area = form.querySelector("textarea");
    area.value = content;
    const leave = () => {
      this.closeEditing();
      element.querySelector("button").focus();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!area.value.trim()) return;
      this.closeEditing();
      this.drop(place);
      this.send(area.value);
      this.turns[place].element.focus({ preventScroll: true });
    });
    area.addEventListener("keydown", (event) => sendOnEnter(event, form));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
    });
    form.querySelector(".leave").addEventListener("click", leave);
    element.classList.add("edited");
    element.append(form);
    this.editing = { element, form };
    area.focus();
  }

  closeEditing() {
    this.editing?.form.remove();
    this.editing?.element.classList.remove("edited");
    this.editing = null;
  }
}

// Put a line below a turn, or none.
function note(turn, text = "") {
  const line = turn.element.querySelector(".ending");
  line.textContent = text;
  line.hidden = !text;
}

// Enter sends a form, but not while it ends a word of an input method. With Shift it is a line's end,
// and so it is on a phone, whose keyboard has no Shift-Enter.
export function sendOnEnter(event, form) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  if (event.keyCode === 229) return; // Safari's word for it, after the composition has ended.
  if (matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  form.requestSubmit();
}

// Change the page; whoever saw its end sees it then.
function keepingEnd(change) {
  const page = document.documentElement;
  const isAtEnd = scrollY + page.clientHeight > page.scrollHeight - END_PIXELS;
  change();
  if (isAtEnd) scrollTo(0, page.scrollHeight);
}
