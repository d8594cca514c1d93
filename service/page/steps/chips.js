// Tokens with their ids.

import { h, shown } from "../dom.js";
import { t } from "../language.js";

/** A list of tokens, in order. */
export function chips(list) {
  return h(
    "ol",
    { class: "chips" },
    list.map(({ id, text, special, generated }) =>
      h(
        "li",
        { class: special ? "special" : null },
        h("span", { class: "token-text" }, shown(text)),
        h("span", { class: "id" }, id),
        generated && h("span", { class: "badge" }, t("drawn")),
      ),
    ),
  );
}
