// Embedding: the size of the table, the length of each token's vector, and the tokens whose vectors point the same way.

import { facts, h } from "../dom.js";
import { number, t } from "../language.js";
import { nearest } from "./nearest.js";
import { parameters } from "./parameters.js";

export async function embedding({ look, base }) {
  const [{ size }, told] = await Promise.all([look.model(), look.embedding()]);
  return [
    facts([
      [t("embedding.rows"), number(size.vocab_size)],
      [t("embedding.width"), number(size.hidden_size)],
    ]),
    parameters(size, ["embedding"]),
    h("h2", {}, t("embedding.nearest")),
    nearest(base.tokens, told),
    h("p", { class: "help" }, t("embedding.unit")),
  ];
}
