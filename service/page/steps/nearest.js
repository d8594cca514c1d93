// Embeddings: how long each token's vector is, and the tokens whose vectors point the same way.

import { h, scrolled, spelled } from "../dom.js";
import { number, t } from "../language.js";

/** The table of what is `told` of each of the `tokens`: { norms, nearest }. */
export function nearest(tokens, { norms, nearest: near }) {
  const longest = Math.max(...norms.data);
  const length = (norm) =>
    h("td", { class: "bar", "data-value": norm }, h("span", { class: "track", "aria-hidden": "true" }, h("span", { style: { "--share": norm / longest } })), h("span", { class: "amount" }, number(norm, 2)));
  const pair = (token) => h("span", { class: "pair" }, h("span", { class: "token-text" }, spelled(token)), ` ${number(token.cosine, 2)}`);
  return scrolled(
    t("embedding.nearest"),
    h(
      "table",
      { class: "plain nearest" },
      h("caption", { class: "unseen" }, t("embedding.nearest")),
      h("thead", {}, h("tr", {}, ["token", "embedding.norm", "embedding.cosine"].map((name) => h("th", { scope: "col" }, t(name))))),
      h(
        "tbody",
        {},
        tokens.map((token, row) => h("tr", {}, h("th", { scope: "row", class: "token-text" }, spelled(token)), length(norms.data[row]), h("td", {}, near[row].map(pair)))),
      ),
    ),
  );
}
