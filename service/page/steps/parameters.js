// The parameters of the model's parts, as the server counts them.

import { h } from "../dom.js";
import { number, percent, t } from "../language.js";

/** The parts of a model, as its card names them, in the order in which a token goes through them. */
export const PARTS = ["embedding", "attention", "feed_forward", "head"];

/** A line that says how many of a model's parameters these `parts` have, and what share of all that is. */
export function parameters({ parameters: counts }, parts) {
  const count = parts.reduce((sum, part) => sum + counts[part], 0);
  return h("p", { class: "parameters", "data-value": count }, t("parameters.share", { count: number(count), share: percent(count / counts.total) }));
}
