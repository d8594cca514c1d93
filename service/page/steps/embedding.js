// Embedding: the size of the table, a token's vector as a picture, how long each is, and which point the same way.

import { facts, h, spelled } from "../dom.js";
import { number, t } from "../language.js";
import { positionPicker } from "./controls.js";
import { dimensions } from "./dimensions.js";
import { nearest } from "./nearest.js";
import { parameters } from "./parameters.js";

export async function embedding(state) {
  const { inspector, base, chosen } = state;
  const [{ size }, told] = await Promise.all([inspector.model(), inspector.embedding()]);
  return [
    facts([
      [t("embedding.rows"), number(size.vocab_size)],
      [t("embedding.width"), number(size.hidden_size)],
    ]),
    parameters(size, ["embedding"]),
    h("h2", {}, t("dimensions.title")),
    h("div", { class: "row controls" }, positionPicker(state, t("position"))),
    dimensions(told.vectors.data[chosen.position], spelled(base.tokens[chosen.position])),
    h("h2", {}, t("embedding.nearest")),
    nearest(base.tokens, told),
    h("p", { class: "help" }, t("embedding.unit")),
  ];
}
