// The settings of the form: numbers, stop strings as they are typed, and the link that has them all.

import { showSpaces } from "./text.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens"];
// As many, and as long, as the API takes.
const MAX_STOPS = 16;
const MAX_STOP_CHARACTERS = 1000;
const ESCAPES = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };

const form = document.getElementById("form");
const fields = form.elements;

let lastSeed = null;

// `tries` is how often the same was asked before: with a given seed, it would be answered the same.
export function readSettings(tries) {
  const settings = Object.fromEntries(NUMBERS.map((name) => [name, Number(fields[name].value)]));
  const given = fields.seed.value && String(Number(fields.seed.value) + tries);
  lastSeed = given || String(Math.floor(Math.random() * 2 ** 32));
  return { ...settings, stop: readStops(fields.stops.value), seed: Number(lastSeed) };
}

// Stop strings, one a line, with the escapes that `velocity sample --stop` takes.
function readStops(typed) {
  const lines = typed.split("\n").filter((line) => line);
  return lines.map((line) => line.replace(/\\[nt\\]/g, (found) => ESCAPES[found]));
}

function findFault(stops) {
  if (stops.length > MAX_STOPS) return `${stops.length} stop strings; at most ${MAX_STOPS} are taken`;
  const isLong = stops.some((stop) => [...stop].length > MAX_STOP_CHARACTERS);
  return isLong ? `a stop string has more than ${MAX_STOP_CHARACTERS} characters` : "";
}

// Show how the stop strings are understood: what is a space, and what a line's end.
function showStops() {
  const stops = readStops(fields.stops.value);
  const fault = findFault(stops);
  fields.stops.setCustomValidity(fault);
  const shown = stops.map((stop) => {
    const code = document.createElement("code");
    code.textContent = showSpaces(stop);
    return code;
  });
  const line = document.getElementById("stops-read");
  line.classList.toggle("wrong", Boolean(fault));
  line.replaceChildren(...(fault ? [fault] : shown));
}

// Take over what a link carries: the form but for the key and the chat.
export function readLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of given) {
    const field = fields.namedItem(name);
    if (field && name === field.name && canHold(field, value)) field.value = value;
  }
  if (given.size > 1) document.getElementById("settings").open = true;
  showStops();
}

// Whether a field can have a value; one that chooses has those that it offers.
function canHold(field, value) {
  return !field.options || [...field.options].some((option) => option.value === value);
}

export function makeLink() {
  const link = new URLSearchParams();
  for (const name of ["prompt", ...NUMBERS, "stops", "seed", "model", "other"]) {
    const value = name === "seed" ? fields.seed.value || lastSeed : fields[name].value;
    if (value !== null && value !== "") link.set(name, value);
  }
  return `#${link}`;
}

fields.stops.addEventListener("input", showStops);
// A browser can show what is wrong with a field only where the field can be seen.
form.addEventListener("invalid", () => (document.getElementById("settings").open = true), true);
