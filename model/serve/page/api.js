// The server's API: which models it has, texts as they are written, and where text comes from.

const ALTERNATIVES = 6;

let key = "";

export function setKey(text) {
  key = text;
}

// What the server said instead of an answer: its HTTP status, words, and the code of the error.
export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function ask(path, body, signal) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  const answer = await reach(
    fetch(path, { method, headers, body: body && JSON.stringify(body), signal }),
  );
  if (answer.ok) return answer;
  let error = { message: `the server answered ${answer.status}` };
  try {
    const { message, code } = (await answer.json()).error;
    error = { message, code };
  } catch {
    // It was not the server's own error; the number says all that is known.
  }
  throw new ApiError(answer.status, error.message, error.code);
}

// What the network gives; its own errors are not for people.
async function reach(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name !== "TypeError") throw error;
    throw new Error("The server cannot be reached; see that velocity serve is still running.");
  }
}

// {data: [{id, max_model_len, chat: whether it chats}, ...], traces: whether /v1/trace answers}
export async function listModels() {
  return (await ask("/v1/models")).json();
}

// The passages of a text that are in the training data; start and stop are characters.
export async function trace(text, start, stop, signal) {
  return (await ask("/v1/trace", { text, start, stop }, signal)).json();
}

// Parts of one text as they are written: {text, tokens: [{id, text, share, others}], ended, prompt}.
// `prompt` is a text or token ids; it comes back as ids.
export async function* write(model, prompt, settings, signal) {
  const body = { model, prompt, ...settings, logprobs: ALTERNATIVES };
  for await (const choice of stream("/v1/completions", body, signal)) {
    const { text, ended_by: ended, prompt_token_ids: ids } = choice;
    yield { text, tokens: readTokens(choice), ended, prompt: ids };
  }
}

// Parts of a chat's next message as it is written: {text, count: its tokens, ended}.
export async function* answer(model, messages, settings, signal) {
  const body = { model, messages, ...settings };
  for await (const choice of stream("/v1/chat/completions", body, signal)) {
    const { delta, token_ids: ids, ended_by: ended } = choice;
    yield { text: delta.content ?? "", count: ids.length, ended };
  }
}

async function* stream(path, body, signal) {
  const asked = { ...body, stream: true, return_token_ids: true };
  const answer = await ask(path, asked, signal);
  for await (const event of readEvents(answer.body)) {
    if (event.error) throw new ApiError(500, event.error.message, event.error.code);
    signal.throwIfAborted(); // What came with the event before is not shown any more.
    yield* event.choices;
  }
}

async function* readEvents(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reach(reader.read());
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function readTokens(choice) {
  const { tokens, token_logprobs, top_logprobs, top_token_ids } = choice.logprobs;
  return tokens.map((text, place) => ({
    id: choice.token_ids[place],
    text,
    share: Math.exp(token_logprobs[place]),
    others: Object.entries(top_logprobs[place])
      .map(([other, logprob]) => ({
        id: top_token_ids[place][other],
        text: other,
        share: Math.exp(logprob),
      }))
      .sort((a, b) => b.share - a.share),
  }));
}
