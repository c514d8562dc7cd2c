// Classifying pasted lines or a table, in batches.

import { decode, parse, write } from "./csv.js";
import { fill, find, make, save } from "./dom.js";
import { hush, number, say, tell } from "./language.js";
import { Problem, Wrong, json, show } from "./net.js";

const BATCH = 32; // texts in a request
const SHOWN = 200; // rows of the result on the page; the file holds all
const LARGEST = 64; // MB of a file

/** Begin the panel, with models that classify. */
export function beginClassify(models) {
  const select = find("classify-model"), text = find("classify-text"), column = find("classify-column");
  const header = find("classify-header"), problem = find("classify-problem"), told = find("classify-told");
  let file = null; // {name, cells}
  let running = null; // AbortController
  let result = null; // {names, rows, found: [label, probability] or nothing, by row}

  const rows = () => file.cells.slice(header.checked ? 1 : 0);
  const names = () => file.cells[0].map((name, i) => (header.checked && name ? name : say("column_n", { n: i + 1 })));

  function source() {
    if (file) return { names: names(), rows: rows(), column: Number(column.value) };
    const lines = text.value.split(/\r?\n/).filter((line) => line.trim());
    return { names: [say("text")], rows: lines.map((line) => [line]), column: 0 };
  }

  function showFile() {
    find("classify-paste").hidden = file !== null;
    find("classify-file").hidden = file === null;
    if (file === null) return text.focus();
    find("classify-name").textContent = file.name;
    tell(find("classify-size"), "file_rows", { n: rows().length });
    fill(column, names().map((name, i) => [i, name]));
    showSample();
  }

  function showSample() {
    tell(find("classify-sample"), "sample", { text: rows()[0]?.[column.value]?.slice(0, 120) ?? "" });
  }

  async function open(chosen) {
    try {
      if (chosen.size > LARGEST * 2 ** 20) throw new Wrong("file_large", { n: LARGEST });
      const read = await readable(chosen);
      if (/\.txt$/i.test(chosen.name)) {
        file = null;
        text.value = read;
      } else {
        const cells = parse(read);
        if (!cells.length) throw new Wrong("nothing_to_classify");
        file = { name: chosen.name, cells };
        header.checked = cells.length > 1;
        column.replaceChildren();
      }
      show(problem, null);
      showFile();
      if (file) column.value = longest(rows());
      if (file) showSample();
    } catch (error) {
      show(problem, error);
    }
  }

  async function run() {
    const { names, rows, column } = source();
    const todo = rows.flatMap((row, i) => (row[column]?.trim() ? [i] : []));
    if (!todo.length) return show(problem, new Wrong("nothing_to_classify"));
    const model = select.value, begun = performance.now(), stop = new AbortController();
    result = { names, rows, column, found: [], counts: new Map(), cut: 0, done: 0 };
    running = stop;
    showResult();
    turn(true);
    try {
      while (result.done < todo.length) {
        const batch = todo.slice(result.done, result.done + BATCH);
        const input = batch.map((i) => rows[i][column]);
        const { data, truncated } = await patiently({ model, input, truncate: true }, stop.signal, told);
        result.cut += truncated;
        addRows(batch, data);
        showProgress(result.done, todo.length, begun);
      }
      tell(told, "done", { n: result.done, seconds: (performance.now() - begun) / 1000 });
    } catch (error) {
      tell(told, "halted", { n: result.done });
      if (error.name !== "AbortError") show(problem, error);
    }
    running = null;
    turn(false);
  }

  function turn(on) {
    if (on) {
      show(problem, null);
      hush(told);
    }
    find("classify-bar").hidden = !on;
    find("classify-bar").value = 0;
    tell(find("classify-run"), on ? "stop" : "classify_run");
  }

  function showProgress(done, total, begun) {
    const seconds = Math.ceil(((performance.now() - begun) / 1000) * (total / done - 1));
    find("classify-bar").value = done / total;
    tell(told, seconds > 3 ? "progress_left" : "progress_told", { done, total, seconds });
  }

  function showResult() {
    find("classify-result").hidden = true;
    find("classify-rows").replaceChildren();
    find("classify-counts").replaceChildren();
    find("classify-cut").hidden = true;
    hush(find("classify-more"));
  }

  function addRows(batch, data) {
    find("classify-result").hidden = false;
    for (const [k, { label, score }] of data.entries()) {
      const i = batch[k];
      result.found[i] = [label, score];
      result.counts.set(label, (result.counts.get(label) ?? 0) + 1);
      if (++result.done <= SHOWN) find("classify-rows").append(rowOf(i + 1, result.rows[i][result.column], label, score));
    }
    find("classify-counts").replaceChildren(...counted(result.counts, result.done));
    if (result.done > SHOWN) tell(find("classify-more"), "more_rows", { shown: SHOWN, n: result.done });
    find("classify-cut").hidden = !result.cut;
    tell(find("classify-cut"), "cut", { n: result.cut });
  }

  find("classify-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else run();
  });
  find("classify-save").addEventListener("click", () => {
    const lines = result.rows.map((row, i) => [...result.names.keys()].map((j) => row[j] ?? "").concat(result.found[i] ?? ["", ""]));
    const name = file ? file.name.replace(/\.[^.]*$/, "") + "-" : "";
    save(`${name}kiban.csv`, write([[...result.names, say("label"), say("probability")], ...lines]));
  });
  find("classify-input").addEventListener("change", ({ target }) => {
    if (target.files.length) open(target.files[0]);
    target.value = ""; // so that the same file may be chosen again
  });
  const place = find("classify-drop");
  place.addEventListener("dragover", () => place.classList.add("over"));
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  find("classify").addEventListener("drop", ({ dataTransfer }) => {
    place.classList.remove("over");
    if (dataTransfer.files.length) open(dataTransfer.files[0]);
  });
  find("classify-remove").addEventListener("click", () => { file = null; showFile(); });
  header.addEventListener("change", showFile);
  column.addEventListener("change", showSample);
  select.addEventListener("change", choose);

  function choose() {
    const { labels } = models.find((one) => one.id === select.value);
    const some = labels.slice(0, 12).join(" / ") + (labels.length > 12 ? " …" : "");
    tell(find("classify-about"), "classify_about", { n: labels.length, labels: some });
  }
  fill(select, models.map((one) => [one.id, one.id]));
  tell(find("classify-run"), "classify_run");
  choose();
}

async function readable(file) {
  try {
    return decode(await file.arrayBuffer());
  } catch {
    throw new Wrong("not_a_table");
  }
}

/** The column whose cells are longest, which is the one with the texts most often. */
function longest(rows) {
  const lengths = rows[0].map((_, j) => rows.slice(0, 50).reduce((sum, row) => sum + (row[j]?.length ?? 0), 0));
  return lengths.indexOf(Math.max(...lengths));
}

/** Ask again when the server says that it is busy, after as long as it says. */
async function patiently(body, signal, told) {
  for (;;) {
    try {
      return await json("v1/classify", { body, signal });
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 429 || error.code === "insufficient_quota") throw error;
      const seconds = error.after ?? 1;
      tell(told, "progress_wait", { seconds });
      await new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, seconds * 1000);
        signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
      });
    }
  }
}

function rowOf(i, text, label, score) {
  const cell = (tag, className, ...children) => make(tag, { className }, ...children);
  return make("tr", {}, cell("td", "n soft", number(i)), cell("td", "quote", text), cell("td", "label", label), cell("td", "n", percent(score)));
}

function counted(counts, total) {
  const most = Math.max(...counts.values());
  return [...counts].sort((a, b) => b[1] - a[1]).map(([label, n]) => {
    const bar = make("i");
    bar.style.width = `${(100 * n) / most}%`;
    const share = make("small", {}, percent(n / total));
    return make("li", {}, make("span", {}, label), make("span", { className: "meter" }, bar), make("b", {}, number(n)), share);
  });
}

/** 93.1%. */
function percent(part) {
  return `${(100 * part).toFixed(1)}%`;
}
