// Embedding: the length of each token's vector, and the tokens whose vectors point the same way.

import { h, shown } from "../dom.js";
import { number, t } from "../language.js";
import { absent, eventually } from "../states.js";
import { nearest } from "./nearest.js";

export function embedding({ look, base }) {
  const norms = base.residual.stream.data[0];
  const most = Math.max(...norms);
  return [
    h("h2", {}, t("embedding.norms")),
    h(
      "ul",
      { class: "bars", "aria-label": t("embedding.norms") },
      base.tokens.map(({ text }, position) =>
        h(
          "li",
          { "data-value": norms[position] },
          h("span", { class: "name token-text" }, shown(text)),
          h("span", { class: "track", "aria-hidden": "true" }, h("span", { style: { "--share": norms[position] / most } })),
          h("span", { class: "amount" }, number(norms[position], 2)),
        ),
      ),
    ),
    h("h2", {}, t("embedding.nearest")),
    eventually(async () => {
      const told = await look.embedding();
      return told === null ? absent(t("embedding.missing")) : nearest(base, told);
    }),
  ];
}
