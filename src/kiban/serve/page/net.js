// Asking the server: with the key, and with refusals in words.

import { tell } from "./language.js";
import { make } from "./dom.js";

const KEPT = "kiban.key";

export const key = () => sessionStorage.getItem(KEPT);
export const keepKey = (value) => sessionStorage.setItem(KEPT, value);
export const forgetKey = () => sessionStorage.removeItem(KEPT);

/** A refusal, or no answer at all (status 0). after: seconds until it may be asked again. */
export class Problem extends Error {
  constructor(status, { message = "", code = null } = {}, after = null) {
    super(message);
    Object.assign(this, { status, code, after });
  }

  /** What to say: key and values. */
  words() {
    if (this.status === 0) return ["problem_network", {}];
    if (this.status === 401) return ["wrong_key", {}];
    if (this.code === "insufficient_quota") return ["problem_budget", {}];
    if (this.status === 429) return ["problem_busy", { seconds: this.after ?? 1 }];
    if (this.code === "context_length_exceeded") return ["problem_long", {}];
    if (this.status === 413) return ["problem_large", {}];
    if (this.status === 503) return ["problem_closing", {}];
    return [this.status >= 500 ? "problem_fault" : "problem_refused", {}];
  }
}

/** GET, or POST of a body as JSON. Throws Problem, and AbortError if the signal ends it. */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body) headers["content-type"] = "application/json";
  const sent = { method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers, signal, cache: "no-store" };
  const answer = await reached(fetch(path, sent));
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const after = Number.parseInt(answer.headers.get("retry-after"), 10);
  throw new Problem(answer.status, told.error, Number.isNaN(after) ? null : after);
}

/** The JSON of an answer. */
export const json = async (path, options) => reached((await ask(path, options)).json());

/** The events of a stream, parsed. Throws Problem if one of them is an error, or the stream ends before its time. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reached(reader.read());
    if (done) throw new Problem(0);
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Problem(500, event.error);
      yield event;
    }
  }
}

async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(0, { message: error.message });
  }
}

/** What the user can mend on the page, in words. */
export class Wrong extends Error {
  constructor(...words) {
    super(words[0]);
    this.words = () => words;
  }
}

/** Show a problem in an element, with what the server said; null hides it. */
export function show(element, problem) {
  element.hidden = problem === null;
  if (problem === null) return;
  if (!problem.words) throw problem; // our own mistake belongs into the console
  const said = problem.status > 0 && problem.message;
  element.replaceChildren(tell(make("span"), ...problem.words()), ...(said ? [make("small", { lang: "en" }, problem.message)] : []));
}
