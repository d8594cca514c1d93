// What a model is told of a position: angles of rotation, a learned row, or slopes. Only the kinds that it has are told.

import { bars } from "../distribution.js";
import { h, s } from "../dom.js";
import { number, t } from "../language.js";

const DEGREES = 180 / Math.PI;

/** The figures of a position encoding as /v1/inspect answers it; `row` is the place of the position in it. */
export function encoding({ rotary, learned, alibi_slopes: slopes }, row) {
  const figures = [...(rotary ?? []).map((rotation) => dials(rotation, row))];
  if (learned) figures.push(vector(learned.data[row]));
  if (slopes) figures.push(heads(slopes));
  return figures.flat();
}

/** A dial for each pair of dimensions: the hand shows by which angle the pair is turned. */
function dials({ layers, magnitude, frequencies, angles }, row) {
  return [
    h("h3", {}, t("encoding.rotary", { first: layers[0], last: layers.at(-1), count: layers.length })),
    h("p", { class: "help" }, t("encoding.rotary.help")),
    h(
      "ol",
      { class: "dials", "aria-label": t("encoding.rotary.label") },
      angles.data[row].map((angle, pair) =>
        h(
          "li",
          { "data-value": angle },
          h("span", { class: "name" }, t("encoding.pair", { pair })),
          dial(angle),
          h("span", { class: "amount" }, degrees(angle * DEGREES)),
          h("span", { class: "note" }, t("encoding.turn", { count: turn(frequencies[pair]) })),
        ),
      ),
    ),
    magnitude !== 1 && h("p", { class: "help" }, t("encoding.magnitude", { factor: number(magnitude, 3) })),
  ].filter(Boolean);
}

/** An angle; the slow pairs turn by less than a tenth of a degree. */
function degrees(angle) {
  return t("degrees", { value: number(angle, Math.abs(angle) < 1 ? 3 : 1) });
}

/** Tokens until a pair has turned once. */
function turn(frequency) {
  const tokens = (2 * Math.PI) / frequency;
  return number(tokens, tokens < 100 ? 1 : 0);
}

/** 0 points to the right, and angles grow against the clock, as in mathematics. */
function dial(angle) {
  const [x, y] = [Math.cos(angle), -Math.sin(angle)];
  return s(
    "svg",
    { class: "dial", viewBox: "-1.15 -1.15 2.3 2.3", "aria-hidden": "true" },
    s("circle", { r: 1 }),
    s("line", { class: "zero", x1: 0, y1: 0, x2: 1, y2: 0 }),
    s("line", { class: "hand", x1: 0, y1: 0, x2: x.toFixed(3), y2: y.toFixed(3) }),
    s("circle", { class: "tip", cx: x.toFixed(3), cy: y.toFixed(3), r: 0.14 }),
  );
}

/** A learned row as bars up and down from a line, one for each dimension. */
function vector(row) {
  const least = Math.min(...row);
  const most = Math.max(...row);
  const full = Math.max(-least, most, Number.MIN_VALUE);
  const values = { count: number(row.length), least: number(least, 3), most: number(most, 3) };
  return [
    h("h3", {}, t("encoding.learned")),
    s(
      "svg",
      { class: "vector", viewBox: `0 -1 ${row.length} 2`, preserveAspectRatio: "none", role: "img", "aria-label": t("encoding.learned.label", values) },
      s("line", { class: "zero", x1: 0, y1: 0, x2: row.length, y2: 0 }),
      row.map((value, x) => s("rect", { class: value < 0 ? "below" : null, x, y: (value > 0 ? -value / full : 0).toFixed(3), width: 1, height: (Math.abs(value) / full).toFixed(3), "data-value": value })),
    ),
    h("p", { class: "help" }, t("encoding.learned.label", values)),
  ];
}

/** The slope of each head: the steeper, the nearer a head looks. */
function heads(slopes) {
  const rows = slopes.map((slope, head) => ({ text: t("heads.head", { head }), value: slope, plain: true }));
  return [
    h("h3", {}, t("encoding.alibi")),
    h("p", { class: "help" }, t("encoding.alibi.help")),
    bars(rows, { label: t("encoding.alibi"), full: Math.max(...slopes), write: (slope) => number(slope, 4) }),
  ];
}
