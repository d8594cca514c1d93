// Tokens with their ids.

import { h, spelled } from "../dom.js";
import { t } from "../language.js";

/** A list of tokens, in order; `other` ones stand out. */
export function chips(list) {
  return h(
    "ol",
    { class: "chips" },
    list.map(({ id, text, bytes, special, generated, other }) =>
      h(
        "li",
        { class: [special && "special", other && "other"].filter(Boolean).join(" ") || null },
        h("span", { class: "token-text" }, spelled({ text, bytes })),
        h("span", { class: "id" }, id),
        generated && h("span", { class: "badge" }, t("drawn")),
      ),
    ),
  );
}
