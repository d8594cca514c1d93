// The tokens whose embeddings are nearest to each token's.

import { h, shown } from "../dom.js";
import { number, t } from "../language.js";

/** The table of the nearest tokens that are `told` of each position of `base`. */
export function nearest(base, told) {
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
