// The language of the page's own words, and numbers in it.

import en from "./strings/en.js";
import { keep, kept } from "./storage.js";
import ko from "./strings/ko.js";

const LANGUAGES = { en, ko };
const STORED = "headlight.language";

let current = kept(STORED);
if (!(current in LANGUAGES)) current = navigator.language.startsWith("ko") ? "ko" : "en";

export function language() {
  return current;
}

export function setLanguage(name) {
  current = name;
  keep(STORED, name);
}

/** The text with this name, with {values} put in. */
export function t(name, values = {}) {
  const text = LANGUAGES[current][name];
  if (text === undefined) throw new Error(`no text is named ${name}`);
  return text.replace(/\{(\w+)\}/g, (_, value) => values[value]);
}

/** A probability in percent. */
export function percent(probability) {
  if (probability > 0 && probability < 0.0001) return `<${number(0.01, 2)}%`;
  const digits = probability >= 0.9995 || probability >= 0.1 ? 1 : 2;
  return `${number(100 * probability, digits)}%`;
}

/** A number with so many digits behind the point. A minus is as wide as a digit, and zero has none. */
export function number(value, digits = 0) {
  const format = { minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "negative" };
  return value.toLocaleString(current, format).replace("-", "−");
}

/** An entropy, given in nats, in bits. */
export function bits(nats) {
  return t("bits", { value: number(Math.max(nats, 0) / Math.LN2, 2) });
}
