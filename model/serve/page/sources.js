// Where passages of a text are in the training data, and at which steps the run saw them.

export function showSources(section, answer, mark) {
  const title = make("h3", "In the training data");
  const list = make("ol");
  for (const passage of answer.passages) {
    const entry = make("li");
    entry.tabIndex = 0;
    for (const event of ["pointerenter", "focusin"]) {
      entry.addEventListener(event, () => mark(passage.start, passage.stop));
    }
    for (const event of ["pointerleave", "focusout"]) {
      entry.addEventListener(event, () => mark(0, 0));
    }
    const places = passage.count === 1 ? "1 place" : `${passage.count.toLocaleString()} places`;
    const listed = passage.places.length;
    const first = listed < passage.count ? `; the first ${listed}:` : "";
    const documents = make("ol");
    documents.append(...passage.places.map((place) => makePlace(place, answer.steps)));
    entry.append(
      make("blockquote", passage.text),
      make("p", `${passage.tokens} tokens, ${places}${first}`),
      documents,
    );
    list.append(entry);
  }
  if (!answer.passages.length) list.append(make("li", "Nothing of it is there word for word."));
  section.replaceChildren(title, list);
  section.hidden = false;
}

function makePlace(place, steps) {
  const entry = make("li");
  const origin = `${place.source_file}, row ${place.source_row}`;
  if (/^https?:\/\//.test(place.url ?? "")) {
    const link = make("a", place.url);
    link.href = place.url;
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
    link.title = origin;
    entry.append(link);
  } else {
    entry.append(make("span", place.url ?? origin));
  }
  entry.append(make("span", describeSteps(place, steps), "steps"));
  return entry;
}

function describeSteps(place, steps) {
  if (place.split !== "train") return `in ${place.split}, which no step sees`;
  if (steps === null) return `token ${place.token.toLocaleString()} of ${place.split}`;
  if (place.left_out) return "left out by the run's data.where, so no step saw it";
  if (!place.num_steps) return `seen at no step of 1 to ${steps.toLocaleString()}`;
  const more = place.num_steps - place.steps.length;
  const listed = place.steps.map((step) => step.toLocaleString()).join(", ");
  const noun = place.num_steps === 1 ? "step" : "steps";
  const rest = more ? ` and ${more.toLocaleString()} more` : "";
  return `seen at ${noun} ${listed}${rest} of ${steps.toLocaleString()}`;
}

function make(tag, text = "", name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}
