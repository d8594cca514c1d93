// Tokens with their ids.

import { h, inOrder, spelled } from "../dom.js";
import { t } from "../language.js";

/** A list of tokens, in order; `other` ones stand out. */
export function chips(list) {
  return h(
    "ol",
    { class: "chips" },
    inOrder(list).map(({ id, text, bytes, before, special, generated, other }) =>
      h(
        "li",
        { class: [special && "special", other && "other"].filter(Boolean).join(" ") || null },
        h("span", { class: "token-text" }, spelled({ text, bytes, before })),
        h("span", { class: "id" }, id),
        generated && h("span", { class: "badge" }, t("drawn")),
      ),
    ),
  );
}
