// The language: the browser's, or the one that was chosen by hand. What was said once is said again when it changes.

import { WORDS } from "./words.js";

const KEPT = "kiban.language";
const LANGUAGES = ["ja", "en"];
const values = new WeakMap(); // by element, of its words

export const language = () => document.documentElement.lang;

/** Begin with the language that was kept, or the browser's. */
export function begin() {
  const kept = localStorage.getItem(KEPT);
  speak(LANGUAGES.includes(kept) ? kept : navigator.language.startsWith("ja") ? "ja" : "en");
}

/** Change to the other language, and keep it. */
export function toggle() {
  const other = LANGUAGES.find((one) => one !== language());
  localStorage.setItem(KEPT, other);
  speak(other);
}

function speak(chosen) {
  document.documentElement.lang = chosen;
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say, values.get(element));
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say(element.dataset.label));
  for (const element of document.querySelectorAll("[data-hint]")) element.placeholder = say(element.dataset.hint);
  for (const element of document.querySelectorAll("[data-title]")) element.title = say(element.dataset.title);
}

/** Words in the language; numbers are written as it writes them, [amount, currency] as money, a Date as its month. */
export function say(key, given = {}) {
  const words = WORDS[key][LANGUAGES.indexOf(language())];
  return words.replace(/\{(\w+)\}/g, (_, name) => write(given[name]));
}

function write(value) {
  if (Array.isArray(value)) return money(...value);
  if (value instanceof Date) return value.toLocaleDateString(language(), { year: "numeric", month: "long", timeZone: "UTC" });
  return typeof value === "number" ? number(value) : value;
}

/** A number to three digits, or whole. */
export function number(value) {
  const digits = Number.isInteger(value) ? {} : Math.abs(value) < 100 ? { maximumSignificantDigits: 3 } : { maximumFractionDigits: 0 };
  return value.toLocaleString(language(), digits);
}

/** 0.012 円, 1.5 USD. */
export function money(amount, currency) {
  return `${number(amount)} ${currency === "JPY" && language() === "ja" ? "円" : currency}`;
}

/** Let an element say words, in whatever language is chosen. */
export function tell(element, key, given = {}) {
  element.dataset.say = key;
  values.set(element, given);
  element.textContent = say(key, given);
  return element;
}

/** Let an element say nothing. */
export function hush(element) {
  delete element.dataset.say;
  element.textContent = "";
}
