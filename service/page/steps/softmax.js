// Softmax: the probabilities of the whole vocabulary, the likeliest tokens by name and the rest together.

import { bars } from "../distribution.js";
import { h, spelled } from "../dom.js";
import { bits, number, t } from "../language.js";
import { positionPicker } from "./controls.js";

const NAMED = 20;

export async function softmax(state) {
  const { inspector, base, chosen } = state;
  const [likeliest, told] = await Promise.all([inspector.next(chosen.position, NAMED), inspector.distributions(chosen.position, [{ temperature: 1 }])]);
  const rows = likeliest.map((token) => ({ text: spelled(token), value: Math.exp(token.logprob), note: number(token.logprob, 2) }));
  const rest = Math.max(1 - rows.reduce((sum, { value }) => sum + value, 0), 0);
  const raw = told?.[0].stages[0];
  rows.push({ text: raw ? t("softmax.rest", { count: number(raw.kept - rows.length) }) : t("others"), value: rest, rest: true, note: "" });
  return [
    h("div", { class: "row controls" }, positionPicker(state, t("softmax.after"))),
    h("h2", {}, t("softmax.label", { token: spelled(base.tokens[chosen.position]) })),
    raw && h("p", { class: "help" }, t("softmax.entropy", { entropy: bits(raw.entropy), count: number(raw.kept) })),
    h("p", { class: "help" }, t("softmax.unit")),
    bars(rows, { label: t("softmax.bars"), full: Math.max(...rows.map(({ value }) => value)) }),
  ].filter(Boolean);
}
