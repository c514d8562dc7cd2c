// The start: the language, the key, and the panels for what the served models can do.

import { beginChat } from "./chat.js";
import { beginClassify } from "./classify.js";
import { find } from "./dom.js";
import { begin, hush, language, tell, toggle } from "./language.js";
import { forgetKey, json, keepKey, key, show } from "./net.js";
import { beginReport } from "./report.js";
import { beginSimilar } from "./similar.js";
import { beginUsage } from "./usage.js";

const PANELS = [
  { name: "chat", takes: (model) => model.abilities.some((one) => one === "chat" || one === "generate"), begin: beginChat },
  { name: "classify", takes: (model) => model.abilities.includes("classify"), begin: beginClassify },
  { name: "similar", takes: (model) => model.abilities.includes("embed"), begin: beginSimilar },
  { name: "report", takes: (model) => Boolean(model.report), begin: beginReport },
  { name: "usage", takes: () => true, begin: beginUsage },
];
const open = {}; // by panel, what is done when it is shown

async function start() {
  tell(find("trouble"), "loading");
  find("trouble").classList.add("waiting");
  find("trouble").hidden = false;
  try {
    const { data } = await json("v1/models");
    find("trouble").hidden = true;
    find("forget").hidden = !key();
    beginPanels(data);
  } catch (error) {
    hush(find("trouble"));
    find("trouble").classList.remove("waiting");
    show(find("trouble"), error.status === 401 ? null : error);
    if (error.status === 401) askForKey(error);
  }
}

function askForKey(problem) {
  show(find("gate-problem"), key() ? problem : null);
  forgetKey();
  find("gate").hidden = false;
  find("key").focus();
}

function beginPanels(models) {
  // Writers first: they are what a chat is for, though a classifier answers too.
  const sorted = models.toSorted((a, b) => rank(a) - rank(b));
  const shown = PANELS.filter(({ takes }) => models.some(takes));
  for (const panel of shown) {
    open[panel.name] = panel.begin(sorted.filter(panel.takes)) ?? (() => {});
    find(`tab-${panel.name}`).hidden = false;
  }
  const wanted = location.hash.slice(1);
  select(shown.some(({ name }) => name === wanted) ? wanted : first(sorted));
}

/** 0 for what chats and writes, 1 for what only writes, 2 for the rest. */
const rank = ({ abilities }) => (abilities.includes("generate") ? (abilities.includes("chat") ? 0 : 1) : 2);

/** The panel to begin with: a classifier's own is better than to chat with it. */
function first(models) {
  if (models.length && rank(models[0]) < 2) return "chat";
  return PANELS.slice(1).find(({ takes }) => models.some(takes)).name;
}

function select(name) {
  for (const panel of PANELS) {
    const tab = find(`tab-${panel.name}`), chosen = panel.name === name;
    tab.ariaSelected = String(chosen);
    tab.tabIndex = chosen ? 0 : -1;
    find(panel.name).hidden = !chosen;
  }
  history.replaceState(null, "", `#${name}`);
  open[name]();
  if (name === "chat" && matchMedia("(pointer: fine)").matches) find("chat-text").focus(); // a phone would open its keyboard
}

function nameLanguage() {
  const button = find("language");
  button.lang = language() === "ja" ? "en" : "ja";
  button.textContent = language() === "ja" ? "English" : "日本語";
}

find("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(find("key").value.trim().replace(/[^\x21-\x7e]/g, "?")); // a header takes no other characters
  find("key").value = "";
  find("gate").hidden = true;
  start();
});
find("forget").addEventListener("click", () => { forgetKey(); location.reload(); });
find("language").addEventListener("click", () => { toggle(); nameLanguage(); });
find("tabs").addEventListener("click", ({ target }) => { if (target.role === "tab") select(target.id.slice("tab-".length)); });
find("tabs").addEventListener("keydown", (event) => {
  const tabs = [...find("tabs").children].filter((tab) => !tab.hidden), at = tabs.indexOf(event.target);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const tab = tabs.at(next % tabs.length);
  tab.click();
  tab.focus();
});
// A file that is dropped beside its place must not take the page away.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());

begin();
nameLanguage();
start();
