// The sampling settings of the chat, kept for the tab. An empty field is left to the model's makers.

import { h } from "./dom.js";
import { t } from "./language.js";

const STORED = "headlight.sampling";

/** name, least, most and step of each number. */
const FIELDS = [
  ["temperature", 0, 2, 0.1],
  ["top_k", 0, 1000, 1],
  ["top_p", 0.01, 1, 0.01],
  ["min_p", 0, 1, 0.01],
  ["repetition_penalty", 0.5, 2, 0.05],
  ["max_tokens", 1, 4096, 1],
  ["seed", 0, 2 ** 31, 1],
];

/** Some chance, so that another answer is another one and the stages have something to show. */
const FIRST = { temperature: 0.7, top_p: 0.9, max_tokens: 256 };

const values = JSON.parse(sessionStorage.getItem(STORED)) ?? FIRST;

/** The fields of a request that the person has filled in. */
export function sampling() {
  return Object.fromEntries(FIELDS.map(([name]) => [name, values[name]]).filter(([, value]) => value !== undefined));
}

/** The system message; empty for none. */
export function systemMessage() {
  return values.system ?? "";
}

/** The form of the settings. */
export function samplingForm() {
  return h(
    "div",
    { class: "sampling" },
    h(
      "div",
      { class: "field wide" },
      h("label", { for: "system" }, t("system")),
      h("textarea", { id: "system", rows: 2, on: { input: ({ target }) => keep("system", target.value) } }, systemMessage()),
    ),
    FIELDS.map(([name, min, max, step]) => number(name, min, max, step)),
    h("p", { class: "help wide" }, t("sampling.help")),
  );
}

function number(name, min, max, step) {
  const id = `setting-${name}`;
  const input = h("input", {
    id,
    type: "number",
    inputmode: "decimal",
    min,
    max,
    step,
    value: values[name],
    placeholder: t(name === "seed" ? "seed.random" : "sampling.default"),
    on: {
      input: ({ target }) => keep(name, target.value === "" ? undefined : target.valueAsNumber),
    },
  });
  return h("div", { class: "field" }, h("label", { for: id }, t(`setting.${name}`)), input);
}

function keep(name, value) {
  values[name] = value;
  sessionStorage.setItem(STORED, JSON.stringify(values));
}
