// One head's attention as a matrix of shades.

import { heat } from "../heat.js";
import { percent, t } from "../language.js";

/** The figure of `weights` [queries][keys] between tokens of these `names`; a row can be chosen as the position. */
export function matrix(names, weights, { chosen, redraw }) {
  const figure = heat({
    label: t("attention.label", { layer: chosen.layer, head: chosen.head }),
    corner: t("attention.corner"),
    rows: names,
    columns: names,
    value: (query, key) => (key <= query ? weights[query][key] : null),
    read: (query, key) => t("attention.read", { query: names[query], key: names[key], share: percent(weights[query][key]) }),
    chosen: chosen.position,
    choose: (position) => {
      chosen.position = position;
      redraw();
    },
  });
  figure.id = "attention-matrix";
  return figure;
}
