// Tokenization: the prompt's tokens with their ids, and what other kinds of text cost.

import { post } from "../api.js";
import { h, shown } from "../dom.js";
import { number, t } from "../language.js";
import { eventually } from "../states.js";

const SAMPLES = [
  ["english", "The weather is nice today, so let us take a walk."],
  ["korean", "오늘은 날씨가 좋으니 산책을 가요."],
  ["code", "for day in week:\n    print(day.weather)"],
];

export function tokens({ base }) {
  return [
    h("h2", {}, t("tokens.prompt", { count: base.tokens.length })),
    chips(base.tokens),
    h("h2", {}, t("tokens.samples")),
    eventually(samples),
  ];
}

/** Tokens with their ids, in order. */
function chips(list) {
  return h(
    "ol",
    { class: "chips" },
    list.map(({ id, text, special }) =>
      h("li", { class: special ? "special" : null }, h("span", { class: "token-text" }, shown(text)), h("span", { class: "id" }, id)),
    ),
  );
}

async function samples() {
  const counted = await Promise.all(SAMPLES.map(([, prompt]) => post("v1/inspect", { prompt, positions: [], residual: true }).catch(() => null)));
  const counts = await Promise.all(
    SAMPLES.map(async ([, prompt], index) => counted[index]?.tokens.length ?? (await post("tokenize", { prompt })).count),
  );
  return h(
    "div",
    { class: "samples" },
    SAMPLES.map(([name, text], index) =>
      h(
        "section",
        { class: "card" },
        h("h3", {}, t(`tokens.${name}`)),
        counted[index] ? chips(counted[index].tokens) : h("p", { class: "token-text" }, text),
        h(
          "p",
          { class: "help" },
          t("tokens.counts", {
            tokens: counts[index],
            characters: [...text].length,
            ratio: number([...text].length / counts[index], 1),
          }),
        ),
      ),
    ),
  );
}
