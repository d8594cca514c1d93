// Tokenization: the prompt's tokens with their ids and bytes, other spellings of it, and what other kinds of text cost.

import { post } from "../api.js";
import { h, hexadecimal, scrolled, spelled } from "../dom.js";
import { number, t } from "../language.js";
import { eventually } from "../states.js";
import { chips } from "./chips.js";

const SAMPLES = [
  ["english", "The weather is nice today, so let us take a walk."],
  ["korean", "오늘은 날씨가 좋으니 산책을 가요."],
  ["code", "for day in week:\n    print(day.weather)"],
];

export function tokens({ base }) {
  return [
    h("h2", {}, t("tokens.prompt", { count: base.tokens.length })),
    chips(base.tokens),
    h("h2", {}, t("tokens.bytes")),
    h("p", { class: "help" }, t("tokens.bytes.help")),
    bytes(base.tokens),
    spellings(base),
    h("h2", {}, t("tokens.samples")),
    eventually(samples),
  ].flat();
}

/** The table of tokens with the bytes that they spell, and their place in the text. */
export function bytes(list) {
  const names = ["token", "tokens.id", "bytes", "tokens.place"];
  const row = ({ id, text, bytes, before, offsets: [start, end] }) =>
    h("tr", {}, h("th", { scope: "row", class: "token-text" }, spelled({ text, bytes, before })), h("td", { class: "amount" }, id), h("td", { class: "token-text" }, hexadecimal(bytes)), h("td", { class: "amount" }, `${start}–${end}`));
  return scrolled(
    t("tokens.bytes"),
    h(
      "table",
      { class: "plain bytes" },
      h("caption", { class: "unseen" }, t("tokens.bytes")),
      h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, t(name))))),
      h("tbody", {}, list.map(row)),
    ),
  );
}

/** The same text in other spellings; tokens that the text itself has are marked as the same. */
export function spellings({ tokens: list, spellings: others }) {
  if (others.length === 0) return [];
  const known = new Set(list.map(({ id }) => id));
  return [
    h("h2", {}, t("tokens.spellings")),
    h("p", { class: "help" }, t("tokens.spellings.help")),
    h(
      "div",
      { class: "samples" },
      others.map(({ name, tokens: own }) => {
        const same = own.filter(({ id }) => known.has(id)).length;
        return h(
          "section",
          { class: "card", "data-spelling": name },
          h("h3", {}, t(`spelling.${name}`)),
          chips(own.map((token) => ({ ...token, other: !known.has(token.id) }))),
          h("p", { class: "help" }, t("tokens.spellings.counts", { count: own.length, same })),
        );
      }),
    ),
  ];
}

async function samples() {
  const told = await Promise.all(SAMPLES.map(([, prompt]) => post("v1/inspect", { prompt, positions: [], details: true })));
  return h(
    "div",
    { class: "samples" },
    SAMPLES.map(([name, text], index) => {
      const { tokens: own } = told[index];
      const counts = { tokens: own.length, characters: [...text].length, ratio: number([...text].length / own.length, 1) };
      return h("section", { class: "card" }, h("h3", {}, t(`tokens.${name}`)), chips(own), h("p", { class: "help" }, t("tokens.counts", counts)));
    }),
  );
}
