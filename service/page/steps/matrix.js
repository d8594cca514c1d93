// One map of attention as a matrix of shades.

import { spelled } from "../dom.js";
import { heat } from "../heat.js";
import { percent, t } from "../language.js";

/** The figure of `weights` [positions][keys] between tokens of a text; null is a weight that is not told.
 *
 * A row can be chosen as the position.
 */
export function matrix({ tokens, positions }, weights, label, { chosen, redraw }) {
  const keys = tokens.slice(0, weights[0].length).map(spelled);
  const queries = positions.map((position) => spelled(tokens[position]));
  const figure = heat({
    label,
    unit: t("attention.weight"),
    corner: t("attention.corner"),
    rows: queries,
    columns: keys,
    value: (row, key) => (key <= positions[row] ? weights[row][key] : null),
    read: (row, key) => t("attention.read", { query: queries[row], key: keys[key], share: percent(weights[row][key]) }),
    chosen: positions.indexOf(chosen.position),
    choose: (row) => {
      chosen.position = positions[row];
      redraw();
    },
  });
  figure.id = "attention-matrix";
  return figure;
}
