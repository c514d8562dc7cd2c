// Which lines are closest to a text, by the cosine of their vectors.

import { fill, find, make } from "./dom.js";
import { json, show } from "./net.js";

const BATCH = 64; // texts in a request
const SHOWN = 10;

/** Begin the panel, with models that embed. */
export function beginSimilar(models) {
  const select = find("similar-model"), problem = find("similar-problem"), list = find("similar-closest");

  async function run() {
    const lines = find("similar-lines").value.split(/\r?\n/).filter((line) => line.trim());
    const vectors = [], texts = [find("similar-text").value, ...lines];
    for (let i = 0; i < texts.length; i += BATCH) {
      const { data } = await json("v1/embeddings", { body: { model: select.value, input: texts.slice(i, i + BATCH) } });
      vectors.push(...data.map(({ embedding }) => embedding));
    }
    const [text, ...others] = vectors; // of length 1
    const closeness = others.map((other) => other.reduce((sum, value, i) => sum + value * text[i], 0));
    const order = [...closeness.keys()].sort((a, b) => closeness[b] - closeness[a]).slice(0, SHOWN);
    list.replaceChildren(...order.map((i) => line(lines[i], closeness[i])));
    find("similar-result").hidden = false;
  }

  find("similar-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.submitter ?? find("similar-form").querySelector("button");
    button.disabled = true;
    try {
      show(problem, null);
      await run();
    } catch (error) {
      show(problem, error);
    }
    button.disabled = false;
  });
  fill(select, models.map((one) => [one.id, one.id]));
}

function line(text, closeness) {
  const bar = make("i");
  bar.style.width = `${100 * Math.max(0, closeness)}%`;
  return make("li", {}, make("span", {}, text), make("span", { className: "meter" }, bar), make("b", {}, closeness.toFixed(3)));
}
