// What a language model is for: the tasks, and the model that is served here.

import { get } from "../api.js";
import { h } from "../dom.js";
import { number, t } from "../language.js";

const TASKS = ["chat", "summary", "translation", "code", "entities", "tools"];

export async function purpose({ look, base }) {
  const [models, heads] = await Promise.all([get("v1/models"), look.heads()]);
  const [model] = models.data;
  const facts = [
    [t("model"), model.id],
    [t("purpose.layers"), number(base.layers)],
    [t("purpose.heads"), number(heads)],
    [t("purpose.context"), model.max_model_len === null ? "–" : t("purpose.tokens", { count: number(model.max_model_len) })],
  ];
  return [
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("h2", {}, t("purpose.tasks")),
    h("ul", { class: "cards" }, TASKS.map((task) => h("li", { class: "card" }, h("strong", {}, t(`task.${task}`)), h("p", {}, t(`task.${task}.prompt`))))),
  ];
}
