// The dimensions of an embedding as a grid of coloured cells, one for each number: two colours from a neutral middle.

import { h, s } from "../dom.js";
import { number, t } from "../language.js";

const COLUMNS = 32;

/** The picture of a token's vector; `token` is how it is spelled. */
export function dimensions(vector, token) {
  const full = Math.max(...vector.map(Math.abs), Number.MIN_VALUE);
  const values = { token, count: number(vector.length), least: number(Math.min(...vector), 3), most: number(Math.max(...vector), 3) };
  const rows = Math.ceil(vector.length / COLUMNS);
  const cell = (value, place) => {
    const properties = { class: value < 0 ? "below" : null, x: place % COLUMNS, y: Math.floor(place / COLUMNS), width: 0.92, height: 0.92 };
    const name = s("title", {}, t("dimensions.cell", { dimension: place, value: number(value, 3) }));
    return s("rect", { ...properties, "data-value": value, style: { "--share": (Math.abs(value) / full).toFixed(3) } }, name);
  };
  return h(
    "figure",
    { class: "heat-figure" },
    s("svg", { class: "dimensions", viewBox: `0 0 ${COLUMNS} ${rows}`, role: "img", "aria-label": t("dimensions.label", values) }, vector.map(cell)),
    legend(full),
    h("figcaption", { class: "help" }, t("dimensions.label", values), " ", t("dimensions.order", { count: COLUMNS })),
  );
}

/** The colours from the largest number below zero to the largest above. */
function legend(full) {
  const marks = [-full, 0, full].map((value, place) => h("span", { style: { "--place": place / 2 } }, number(value, 3)));
  return h("div", { class: "scale", "aria-hidden": "true" }, h("div", { class: "both-ways" }), h("div", { class: "marks" }, marks));
}
