// What a language model is for: the tasks, and the model that is served here.

import { bars } from "../distribution.js";
import { facts, h } from "../dom.js";
import { number, percent, t } from "../language.js";
import { PARTS } from "./parameters.js";

const TASKS = ["chat", "summary", "translation", "code", "entities", "tools"];

export async function purpose({ inspector }) {
  const model = await inspector.model();
  const { size } = model;
  return [
    facts([
      [t("model"), model.id],
      [t("purpose.parameters"), number(size.parameters.total)],
      [t("purpose.memory"), t("megabytes", { value: number(size.weight_bytes / 1e6, 1) })],
      [t("purpose.bits"), t("bits", { value: number((8 * size.weight_bytes) / size.parameters.total, 1) })],
      [t("purpose.layers"), number(size.layers)],
      [t("purpose.context"), t("purpose.tokens", { count: number(model.max_model_len) })],
    ]),
    h("h2", {}, t("purpose.parts")),
    parts(size),
    h("h2", {}, t("purpose.tasks")),
    h("ul", { class: "cards" }, TASKS.map((task) => h("li", { class: "card" }, h("strong", {}, t(`task.${task}`)), h("p", {}, t(`task.${task}.prompt`))))),
  ];
}

/** The parameters of each part of the model. */
function parts({ parameters: counts }) {
  const rows = PARTS.map((part) => ({ text: t(`parameters.${part}`), value: counts[part], note: percent(counts[part] / counts.total), plain: true }));
  return bars(rows, { label: t("purpose.parts"), full: counts.total, write: (count) => number(count) });
}
