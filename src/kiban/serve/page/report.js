// The report of the run that a model comes from, in a frame that may do nothing.

import { fill, find } from "./dom.js";
import { json, show } from "./net.js";

/** Begin the panel, with models that have a report; returns what shows it. */
export function beginReport(models) {
  const select = find("report-model"), frame = find("report-frame"), problem = find("report-problem");
  let shown = null;

  // A frame and a tab cannot send a key, so the server makes a link for them that works for a minute.
  async function withLink(use) {
    try {
      const { url } = await json(models.find((one) => one.id === select.value).report.slice(1));
      show(problem, null);
      use(url.slice(1));
    } catch (error) {
      show(problem, error);
    }
  }

  function open() {
    if (shown === select.value) return;
    withLink((url) => { frame.src = url; shown = select.value; });
  }

  select.addEventListener("change", open);
  find("report-open").addEventListener("click", () => withLink((url) => window.open(url, "_blank", "noopener")));
  fill(select, models.map((one) => [one.id, one.id]));
  return open;
}
