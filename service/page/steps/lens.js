// The logit lens: what the model would say if it stopped after each layer.

import { h, spelled } from "../dom.js";
import { heat } from "../heat.js";
import { percent, t } from "../language.js";
import { parameters } from "./parameters.js";

export async function lens({ inspector, base }) {
  const [seen, { size }] = await Promise.all([inspector.lens(), inspector.model()]);
  const shared = size.parameters.head < size.vocab_size * size.hidden_size;
  return [parameters(size, ["head"]), shared && h("p", { class: "help" }, t("lens.shared")), grid(base.tokens, seen)].flat().filter(Boolean);
}

/** The likeliest tokens [stages][positions] of a lens as /v1/inspect answers it; `tokens` are those of the text. */
export function grid(tokens, { positions, lens: stages }) {
  // The last layer on top, as it is drawn in papers: the stream flows upwards.
  const order = stages.map((_, stage) => stage).reverse();
  const entry = (row, column) => stages[order[row]][column];
  const name = (row) => (order[row] === 0 ? t("lens.embedding") : t("layer.short", { layer: order[row] - 1 }));
  const names = positions.map((position) => spelled(tokens[position]));
  const share = ({ likeliest: [first] }) => Math.exp(first.logprob);
  const figure = heat({
    label: t("lens.label"),
    unit: t("probability"),
    wide: true,
    rows: order.map((_, row) => name(row)),
    columns: names,
    value: (row, column) => share(entry(row, column)),
    text: (row, column) => h("span", { class: "cell-text" }, spelled(entry(row, column).likeliest[0])),
    read: (row, column) =>
      t("lens.read", {
        layer: name(row),
        token: names[column],
        list: entry(row, column).likeliest.map((token) => `${spelled(token)} ${percent(Math.exp(token.logprob))}`).join(", "),
      }) + (entry(row, column).next_rank ? ` ${t("lens.rank", { rank: entry(row, column).next_rank })}` : ""),
  });
  return [h("h2", {}, t("lens.label")), figure];
}
