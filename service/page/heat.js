// Tables of numbers as shades, each with a legend and a line that reads the cell which is pointed at.

import { h, s } from "./dom.js";
import { number, percent, t } from "./language.js";

/** A table of shades.
 *
 * `rows` and `columns` are labels as they are shown, `value(row, column)` a share of 1 or null for no cell, `read(row, column)` the
 * sentence about a cell, `text(row, column)` what is written in it, by default its share for a screen reader alone. `unit` is what
 * the shares are of. `choose(row)` makes rows a choice.
 */
export function heat({ label, unit, rows, columns, value, read, text, chosen, choose, wide = false, corner = "" }) {
  const line = h("p", { class: "reading", role: "status" }, t("reading.hint"));
  const cells = rows.map((_, row) => columns.map((_, column) => cell(row, column)));
  const body = rows.map((name, row) =>
    h("tr", { class: row === chosen ? "marked" : null }, h("th", { scope: "row" }, choose ? rowButton(name, row) : name), cells[row]),
  );
  const place = h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label, on: { keydown: move, pointerover: point, click: point } },
    h(
      "table",
      { class: wide ? "heat wide" : "heat", style: { "--columns": columns.length } },
      h("caption", { class: "unseen" }, label),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, corner), columns.map((name) => h("th", { scope: "col" }, h("span", {}, name))))),
      h("tbody", {}, body),
    ),
  );
  let at = null;

  function cell(row, column) {
    const share = value(row, column);
    if (share === null) return h("td", { class: "none" });
    return h("td", { "data-value": share, "data-at": `${row},${column}`, style: { "--share": shade(share) } }, (text ?? unseen)(row, column));
  }

  function unseen(row, column) {
    return h("span", { class: "unseen" }, percent(value(row, column)));
  }

  function rowButton(name, row) {
    return h("button", { type: "button", class: "row-name", "aria-pressed": String(row === chosen), on: { click: () => choose(row) } }, name);
  }

  function show(row, column) {
    const next = cells[row]?.[column];
    if (!next?.dataset.at) return;
    if (at) cells[at[0]][at[1]].classList.remove("at");
    at = [row, column];
    next.classList.add("at");
    line.textContent = read(row, column);
  }

  function point({ target }) {
    const found = target.closest("td")?.dataset.at;
    if (found) show(...found.split(",").map(Number));
  }

  function move(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || event.target !== place) return;
    event.preventDefault();
    if (at) show(at[0] + step[0], at[1] + step[1]);
    else show(rows.length - 1, 0);
    if (at) cells[at[0]][at[1]].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  return h("figure", { class: wide ? "heat-figure wide" : "heat-figure" }, place, legend(unit), line);
}

/** Small shares would hardly be seen, so a shade grows with the square root. */
function shade(share) {
  return Math.sqrt(Math.min(Math.max(share, 0), 1));
}

/** The scale of the shades of what `unit` names. */
export function legend(unit) {
  const marks = [0, 0.05, 0.25, 0.5, 1];
  return h(
    "div",
    { class: "scale", "aria-hidden": "true" },
    h("span", {}, unit),
    h("span", { class: "ramp" }),
    h("div", { class: "marks" }, marks.map((mark) => h("span", { style: { "--place": shade(mark) } }, `${number(100 * mark)}%`))),
  );
}

/** A small picture of a lower triangle, [queries][keys]. Its cells differ in opacity, the colour is the style sheet's. */
export function miniature(weights) {
  const count = weights.length;
  const cells = weights.flatMap((keys, row) =>
    keys.slice(0, row + 1).map((weight, x) => s("rect", { x, y: row, width: 1, height: 1, "fill-opacity": shade(weight).toFixed(3) })),
  );
  return s("svg", { class: "miniature", viewBox: `0 0 ${count} ${count}`, "aria-hidden": "true" }, cells);
}
