// What was used this month, by key and model.

import { find, make } from "./dom.js";
import { tell } from "./language.js";
import { json, show } from "./net.js";

/** Begin the panel; returns what shows it. */
export function beginUsage() {
  async function open() {
    try {
      showUsage(await json("v1/usage"));
      show(find("usage-problem"), null);
    } catch (error) {
      show(find("usage-problem"), error);
    }
  }
  find("usage-again").addEventListener("click", open);
  return open;
}

function showUsage({ month, currency, data, budgets }) {
  const cell = (value, className = "n") => tell(make("td", { className }), "plain", { value });
  const cost = (amount) => (currency ? [amount, currency] : "–");
  tell(find("usage-title"), "usage_title", { month: new Date(`${month}-01`) });
  tell(find("usage-lead"), data.length === 0 ? "usage_none" : currency ? "usage_lead" : "usage_free");
  const sum = (name) => data.reduce((total, row) => total + row[name], 0);
  const tiles = { requests: sum("requests"), tokens_in: sum("prompt_tokens"), tokens_out: sum("completion_tokens"), cost: cost(sum("cost")) };
  find("usage-tiles").replaceChildren(
    ...Object.entries(tiles).map(([key, value]) => make("div", {}, tell(make("dt"), key), tell(make("dd"), "plain", { value }))),
  );
  find("usage-budgets").replaceChildren(...budgets.map((one) => budget(one, currency)));
  find("usage-region").hidden = data.length === 0;
  find("usage-rows").replaceChildren(
    ...data.map((row) => {
      const counts = [row.requests, row.prompt_tokens, row.completion_tokens, cost(row.cost)];
      return make("tr", {}, cell(row.key, ""), cell(row.model, ""), ...counts.map((count) => cell(count)));
    }),
  );
}

function budget({ key, monthly_budget: most, spent }, currency) {
  const left = Math.max(0, most - spent), bar = make("i");
  bar.style.width = `${most ? Math.min(100, (100 * spent) / most) : 100}%`;
  const words = tell(make("span"), "budget", { key, budget: [most, currency], left: [left, currency] });
  return make("li", { className: left === 0 ? "spent" : "" }, words, make("span", { className: "meter" }, bar));
}
