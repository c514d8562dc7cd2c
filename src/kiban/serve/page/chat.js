// The chat. The conversation lives in `turns` alone.

import { copy, fill, find, make } from "./dom.js";
import { tell } from "./language.js";
import { ask, events, show } from "./net.js";

const MOST_TOKENS = 512; // that an answer has if nobody says otherwise
const NEAR = 120; // pixels from the end within which the page follows what is written

/** Begin the panel, with models that chat or continue texts. */
export function beginChat(models) {
  const form = find("chat-form"), box = find("chat-text"), log = find("chat-turns"), send = find("chat-send");
  const select = find("chat-model");
  let turns = []; // {said, text, lost, answer}: lost ones are not told to the model
  let running = null; // AbortController

  const model = () => models.find((one) => one.id === select.value);
  const chats = (one) => one.abilities.includes("chat");

  function choose() {
    const one = model();
    find("chat-settings").hidden = !one.abilities.includes("generate");
    find("chat-system").parentElement.hidden = !chats(one);
    find("chat-max").value = Math.min(MOST_TOKENS, Math.floor((one.max_seq_len ?? MOST_TOKENS) / 2));
    const about = find("chat-about");
    if (one.labels) tell(about, "chat_labels", { labels: one.labels.join(" / ") });
    else if (chats(one)) tell(about, "chat_about", { n: one.max_seq_len });
    else tell(about, "chat_continues");
  }

  function begin() {
    if (running || !box.value.trim()) return;
    const turn = { said: box.value, text: "", lost: false, answer: make("div", { className: "answer" }) };
    turns.push(turn);
    const said = make("div", { className: "said" }, tell(make("span", { className: "hidden" }), "you"), turn.said);
    log.append(make("article", { className: "turn" }, said, turn.answer));
    find("chat-hello").hidden = true;
    find("chat-clear").hidden = false;
    box.value = "";
    write(turn);
  }

  function request(turn) {
    const one = model(), number = (id) => (find(id).value === "" ? undefined : find(id).valueAsNumber);
    const body = { model: one.id, stream: true, stream_options: { include_usage: true } };
    if (one.abilities.includes("generate")) Object.assign(body, { temperature: number("chat-temperature"), max_tokens: number("chat-max") });
    if (!chats(one)) return ["v1/completions", { ...body, prompt: turn.said }];
    const system = find("chat-system").value.trim();
    const before = turns.slice(0, turns.indexOf(turn)).filter((one) => !one.lost);
    const messages = before.flatMap(({ said, text }) => [{ role: "user", content: said }, { role: "assistant", content: text }]);
    if (system && !one.labels) messages.unshift({ role: "system", content: system });
    return ["v1/chat/completions", { ...body, messages: [...messages, { role: "user", content: turn.said }] }];
  }

  async function write(turn) {
    const words = document.createTextNode(""), text = make("p", { className: "text" }, words);
    const foot = make("p", { className: "foot" });
    turn.answer.replaceChildren(text, foot);
    turn.answer.ariaBusy = "true";
    turn.text = "";
    running = new AbortController();
    tell(send, "stop");
    scrollTo(0, document.body.scrollHeight);
    let usage = null, finish = null, first = null, last = null, unseen = "";
    const appear = () => {
      following(() => words.appendData(unseen));
      unseen = "";
    };
    try {
      const [path, body] = request(turn);
      for await (const event of events(await ask(path, { body, signal: running.signal }))) {
        usage = event.usage ?? usage;
        const [choice] = event.choices;
        finish = choice?.finish_reason ?? finish;
        const piece = choice?.delta?.content ?? choice?.text;
        if (!piece) continue;
        last = performance.now();
        first ??= last;
        turn.text += piece;
        if (!unseen) requestAnimationFrame(appear); // a fast model must not keep the page from its buttons
        unseen += piece;
      }
      told(foot, usage, finish, last - first);
    } catch (error) {
      if (error.name === "AbortError") tell(foot.appendChild(make("span")), "stopped");
      else failed(turn, foot, error);
    }
    appear();
    turn.lost = !turn.text;
    turn.answer.ariaBusy = "false";
    if (turn.text) foot.prepend(copier(turn));
    following(() => turn.answer.classList.add("done"));
    running = null;
    tell(send, "send");
  }

  function failed(turn, foot, problem) {
    const told = make("p", { className: "problem" });
    foot.before(told);
    show(told, problem);
    const again = tell(make("button", { type: "button", className: "quiet" }), "again");
    again.addEventListener("click", () => { if (!running) { box.focus(); write(turn); } });
    foot.prepend(again);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else begin();
    box.focus();
  });
  box.addEventListener("keydown", (event) => {
    // While a word is being converted, Enter belongs to the input method; Safari tells by 229 alone.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    begin();
  });
  find("chat").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) running?.abort();
  });
  find("chat-clear").addEventListener("click", () => {
    running?.abort();
    turns = [];
    log.replaceChildren();
    find("chat-hello").hidden = false;
    find("chat-clear").hidden = true;
    box.focus();
  });
  select.addEventListener("change", choose);
  fill(select, models.map((one) => [one.id, one.id]));
  tell(send, "send");
  choose();
}

/** What an answer used: tokens, speed, cost. */
function told(foot, usage, finish, milliseconds) {
  const say = (key, values) => tell(foot.appendChild(make("span")), key, values);
  if (finish === "length") say("full");
  if (!usage) return;
  say("used", { prompt: usage.prompt_tokens, written: usage.completion_tokens });
  if (usage.completion_tokens > 1 && milliseconds > 0) say("speed", { n: ((usage.completion_tokens - 1) * 1000) / milliseconds });
  if (usage.currency) say("plain", { value: [usage.cost, usage.currency] });
}

function copier(turn) {
  const button = tell(make("button", { type: "button", className: "quiet" }), "copy");
  button.addEventListener("click", async () => {
    await copy(turn.text);
    tell(button, "copied");
    setTimeout(() => tell(button, "copy"), 1500);
  });
  return button;
}

/** Change the page; who read its end still sees the end. */
function following(change) {
  const near = document.body.scrollHeight - innerHeight - scrollY < NEAR;
  change();
  if (near) scrollTo(0, document.body.scrollHeight);
}
