// Embedding: the length of each token's vector, and the tokens whose vectors point the same way.

import { h, shown } from "../dom.js";
import { number, t } from "../language.js";
import { absent, eventually } from "../states.js";

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
    eventually(async () => nearest(base, await look.embedding())),
  ];
}

function nearest(base, told) {
  if (told === null) return absent(t("embedding.missing"));
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": t("embedding.nearest") },
    h(
      "table",
      { class: "plain" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("token")), h("th", { scope: "col" }, t("embedding.cosine")))),
      h(
        "tbody",
        {},
        base.tokens.map(({ text }, position) =>
          h(
            "tr",
            {},
            h("th", { scope: "row", class: "token-text" }, shown(text)),
            h(
              "td",
              {},
              told.nearest[position].map((near) =>
                h("span", { class: "pair" }, h("span", { class: "token-text" }, shown(near.text)), ` ${number(near.cosine, 2)}`),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}
