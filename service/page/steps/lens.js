// The logit lens: what the model would say if it stopped after each layer.

import { h, shown } from "../dom.js";
import { heat } from "../heat.js";
import { percent, t } from "../language.js";

export async function lens({ look, base }) {
  const { positions, lens: stages } = await look.lens();
  // The last layer on top, as it is drawn in papers: the stream flows upwards.
  const order = stages.map((_, stage) => stage).reverse();
  const entry = (row, column) => stages[order[row]][column];
  const name = (row) => (order[row] === 0 ? t("lens.embedding") : t("layer.short", { layer: order[row] - 1 }));
  const names = positions.map((position) => shown(base.tokens[position].text));
  const share = ({ likeliest: [first] }) => Math.exp(first.logprob);
  const figure = heat({
    label: t("lens.label"),
    wide: true,
    rows: order.map((_, row) => name(row)),
    columns: names,
    value: (row, column) => share(entry(row, column)),
    text: (row, column) => h("span", { class: "cell-text" }, shown(entry(row, column).likeliest[0].text)),
    read: (row, column) =>
      t("lens.read", {
        layer: name(row),
        token: names[column],
        list: entry(row, column).likeliest.map(({ text, logprob }) => `${shown(text)} ${percent(Math.exp(logprob))}`).join(", "),
      }) + (entry(row, column).next_rank ? ` ${t("lens.rank", { rank: entry(row, column).next_rank })}` : ""),
  });
  return [h("h2", {}, t("lens.label")), figure];
}
