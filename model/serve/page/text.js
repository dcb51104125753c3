// One text on the page: its tokens, their probabilities and alternatives, and what is selected.
//
// Whatever comes from a model is put in by textContent: it is text, never markup.

import { showSources } from "./sources.js";

const DOUBTS = [0.6, 0.3, 0.1, 0.03]; // Below each of these shares a token is shaded darker.
const encoder = new TextEncoder();

export class Text {
  // `onBranch(text, ids)` goes on from other ids, `onBack()` writes no further, and `onTrace(text)`
  // asks where it comes from.
  constructor(model, { traces, onBranch, onBack, onTrace }) {
    this.model = model;
    this.onBranch = onBranch;
    this.onBack = onBack;
    this.onTrace = onTrace;
    this.element = document.getElementById("text").content.firstElementChild.cloneNode(true);
    this.written = this.element.querySelector(".written");
    this.card = this.element.querySelector(".card");
    this.back = this.element.querySelector(".back");
    this.sources = this.element.querySelector(".sources");
    this.element.querySelector("h2").textContent = model;
    this.written.ariaLabel = `Text of ${model}; arrow keys go from token to token`;
    this.card.ariaLabel = "Probabilities of this token";
    this.earlier = [];
    this.start("");
    const button = this.element.querySelector(".trace");
    button.hidden = !traces;
    button.addEventListener("click", () => this.onTrace(this));
    this.back.addEventListener("click", () => this.goBack());
    this.listen();
  }

  // Begin with a prompt: its text, and those of its tokens that an earlier text had written.
  start(prompt, kept = []) {
    this.prompt = prompt;
    this.promptIds = null;
    this.tokens = [];
    this.ended = null;
    this.cut = null;
    this.decoder = new TextDecoder();
    this.range = null;
    this.hideCard();
    this.sources.hidden = true;
    const begin = document.createElement("span");
    begin.className = "prompt";
    begin.textContent = prompt;
    this.written.replaceChildren(begin);
    kept.forEach((token) => this.add(token));
    // Of what is new, in UTF-16 units: what the tokens spell, and what of it the server gave.
    this.spelled = this.given = 0;
  }

  add(token) {
    const span = document.createElement("span");
    span.className = "token";
    span.tabIndex = this.tokens.length ? -1 : 0;
    span.role = "button";
    // A character that takes several tokens is shown at the last of them.
    const text = this.decoder.decode(readBytes(token.text), { stream: true });
    span.textContent = text;
    this.spelled += text.length;
    if (text.startsWith("\n")) span.classList.add("line");
    if (token.isChosen) span.classList.add("chosen");
    const doubt = DOUBTS.filter((share) => token.share < share).length;
    if (doubt) span.dataset.doubt = doubt;
    span.ariaLabel = `${describe(token.text)}, ${percent(token.share)}`;
    span.ariaHasPopup = "dialog";
    this.tokens.push({ ...token, span });
    this.written.append(span);
  }

  // Add a part of what is written.
  take({ text, tokens, ended }) {
    tokens.forEach((token) => this.add(token));
    this.given += text.length;
    if (ended) this.end(ended);
  }

  // Of a text that ended by itself, the token that ended it is no text; of one that ended at a stop
  // string, neither is that. `cut` is how much that is, where it is known.
  end(reason, cut = null) {
    this.ended = reason;
    const last = this.tokens.at(-1);
    if (!last) return;
    const rest = this.decoder.decode(); // Of a character that was not written to its end.
    last.span.append(rest);
    if (reason === "end_of_text") this.cut = last.span.textContent.length;
    else if (reason === "stop") this.cut = cut ?? this.spelled + rest.length - this.given;
    else return;
    this.cutOff(this.cut);
    last.span.classList.add("end");
    last.span.dataset.end = reason === "stop" ? "stop string" : "end of text";
  }

  cutOff(units) {
    for (let place = this.tokens.length - 1; place >= 0 && units > 0; place--) {
      const { span } = this.tokens[place];
      const size = span.textContent.length;
      span.textContent = span.textContent.slice(0, Math.max(size - units, 0));
      units -= size;
    }
  }

  get text() {
    return this.written.textContent;
  }

  // What is selected, in UTF-16 units of the text, or all of it.
  get chosen() {
    return this.range ?? [0, this.text.length];
  }

  branch(place, other) {
    const kept = this.tokens.slice(0, place);
    const ids = [...this.promptIds, ...kept.map((token) => token.id), other.id];
    const { prompt, promptIds, tokens, ended, cut } = this;
    this.earlier.push({ prompt, promptIds, tokens, ended, cut });
    this.back.hidden = false;
    const others = this.tokens[place].others;
    this.start(this.prompt, [...kept, { ...other, others, isChosen: true }]);
    this.promptIds = ids.slice(0, ids.length - place - 1);
    this.tokens[0].span.tabIndex = -1;
    this.tokens[place].span.tabIndex = 0;
    this.tokens[place].span.focus();
    this.hideCard(); // It has been used; the text that follows is what is looked at now.
    this.onBranch(this, ids);
  }

  goBack() {
    this.onBack();
    const { prompt, promptIds, tokens, ended, cut } = this.earlier.pop();
    this.start(prompt, tokens);
    this.promptIds = promptIds;
    if (ended) this.end(ended, cut);
    this.back.hidden = !this.earlier.length;
  }

  showSources(answer) {
    showSources(this.sources, answer, (start, stop) => this.mark(start, stop));
  }

  // Mark [start, stop) of the text, or nothing.
  mark(start, stop) {
    if (!CSS.highlights) return; // A browser of before 2025.
    const range = document.createRange();
    let at = 0;
    for (const span of this.written.children) {
      const length = span.textContent.length;
      const inside = (place) => place >= at && place <= at + length && length;
      if (inside(start)) range.setStart(span.firstChild, start - at);
      if (inside(stop)) range.setEnd(span.firstChild, stop - at);
      at += length;
    }
    CSS.highlights.set("found", new Highlight(range));
  }

  listen() {
    const find = (event) => this.tokens.findIndex(({ span }) => span === event.target);
    const open = (event, isPinned) => {
      const place = find(event);
      if (place < 0 || (this.isPinned && !isPinned)) return;
      this.showCard(place);
      this.isPinned = isPinned;
    };
    this.written.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse" && !event.buttons) open(event, false);
    });
    this.written.addEventListener("focusin", (event) => open(event, true));
    this.written.addEventListener("click", (event) => {
      if (document.getSelection().isCollapsed) open(event, true);
    });
    const leave = () => this.isPinned || this.hideCard();
    this.element.addEventListener("pointerleave", leave);
    this.element.addEventListener("pointerover", (event) => {
      if (!event.target.closest(".token, .card")) leave();
    });
    this.element.addEventListener("focusout", (event) => {
      if (!this.element.contains(event.relatedTarget)) this.hideCard();
    });
    this.written.addEventListener("keydown", (event) => this.move(event, find(event)));
    this.card.addEventListener("keydown", (event) => this.moveInCard(event));
  }

  // Arrow keys go from token to token, with Shift they select, Enter opens the alternatives.
  move(event, place) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -place, End: this.tokens.length };
    if (event.key === "Escape") {
      this.hideCard();
    } else if (event.key === "Enter" || event.key === " ") {
      this.showCard(place);
      this.card.querySelector("button")?.focus();
    } else if (place >= 0 && event.key in steps) {
      const next = Math.min(Math.max(place + steps[event.key], 0), this.tokens.length - 1);
      this.anchor = event.shiftKey ? (this.anchor ?? place) : null;
      this.tokens[place].span.tabIndex = -1;
      this.tokens[next].span.tabIndex = 0;
      this.tokens[next].span.focus();
      this.selectTokens(next);
    } else {
      return;
    }
    event.preventDefault();
  }

  selectTokens(next) {
    const selection = document.getSelection();
    if (this.anchor === null) {
      selection.removeAllRanges();
      this.range = null;
      return;
    }
    const [from, to] = [Math.min(this.anchor, next), Math.max(this.anchor, next)];
    const [first, last] = [this.tokens[from].span, this.tokens[to].span];
    selection.setBaseAndExtent(first, 0, last, last.childNodes.length);
  }

  moveInCard(event) {
    const buttons = [...this.card.querySelectorAll("button")];
    const place = buttons.indexOf(document.activeElement);
    if (event.key === "Escape") {
      this.tokens[this.shown].span.focus();
      this.hideCard();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const step = event.key === "ArrowDown" ? 1 : buttons.length - 1;
      buttons[(place + step) % buttons.length].focus();
    } else {
      return;
    }
    event.preventDefault();
  }

  noteSelection() {
    const selection = document.getSelection();
    const isHere = selection.rangeCount && this.written.contains(selection.anchorNode);
    if (!isHere || !this.written.contains(selection.focusNode)) return;
    if (selection.isCollapsed) {
      this.range = null;
      return;
    }
    const chosen = selection.getRangeAt(0);
    const before = document.createRange();
    before.setStart(this.written, 0);
    before.setEnd(chosen.startContainer, chosen.startOffset);
    const start = before.toString().length;
    this.range = [start, start + chosen.toString().length];
  }

  showCard(place) {
    const token = this.tokens[place];
    this.tokens[this.shown]?.span.classList.remove("open");
    this.shown = place;
    token.span.classList.add("open");
    const title = document.createElement("p");
    title.textContent = "Click one to go on from it";
    const buttons = token.others.map((other) => this.makeButton(place, other, token));
    this.card.replaceChildren(title, ...buttons);
    this.card.hidden = false;
    const around = this.element.getBoundingClientRect();
    const [line] = token.span.getClientRects();
    if (!line) return;
    const left = Math.min(line.left - around.left, around.width - this.card.offsetWidth - 8);
    this.card.style.left = `${Math.max(left, 8)}px`;
    this.card.style.top = `${line.bottom - around.top}px`;
  }

  makeButton(place, other, token) {
    const button = document.createElement("button");
    button.type = "button";
    button.ariaLabel = `${describe(other.text)}, ${percent(other.share)}: go on from it`;
    if (other.id === token.id) button.ariaCurrent = "true";
    const [name, share, bar] = ["code", "span", "progress"].map((tag) =>
      document.createElement(tag),
    );
    name.textContent = describe(other.text);
    share.className = "share";
    share.textContent = percent(other.share);
    bar.value = other.share;
    bar.ariaHidden = "true";
    button.append(name, share, bar);
    button.addEventListener("click", () => this.branch(place, other));
    return button;
  }

  hideCard() {
    this.tokens?.[this.shown]?.span.classList.remove("open");
    this.card.hidden = true;
    this.isPinned = false;
  }
}

// The bytes of a token; those that are no whole characters come as "bytes:\xe2\x80".
function readBytes(text) {
  const digits = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(text);
  if (!digits) return encoder.encode(text);
  return Uint8Array.from(digits[1].slice(2).split("\\x"), (byte) => parseInt(byte, 16));
}

// A token's text in which spaces and line ends can be seen.
function describe(text) {
  if (text.startsWith("bytes:\\x")) return text.replace(/\\x/g, " ");
  return showSpaces(text) || "(nothing)";
}

export function showSpaces(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥");
}

function percent(share) {
  if (share < 0.001) return "<0.1 %";
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}
