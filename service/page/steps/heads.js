// Many heads: all heads of one layer beside each other.

import { facts, h } from "../dom.js";
import { legend, miniature } from "../heat.js";
import { number, t } from "../language.js";
import { layerPicker } from "./controls.js";

export async function heads(state) {
  const { inspector, chosen } = state;
  const [maps, { size }] = await Promise.all([inspector.attention(chosen.layer), inspector.model()]);
  return [
    facts([
      [t("heads.count"), number(size.heads)],
      [t("heads.keys"), number(size.kv_heads)],
      [t("heads.width"), number(size.head_dim)],
    ]),
    h("div", { class: "row controls" }, layerPicker(state)),
    h("h2", {}, t("heads.grid", { layer: chosen.layer, count: maps.length })),
    h("p", { class: "help" }, t("heads.help")),
    h("div", { class: "heads" }, maps.map((weights, head) => tile(weights, head, chosen))),
    legend(t("attention.weight")),
  ];
}

function tile(weights, head, chosen) {
  const open = () => {
    chosen.head = head;
    location.hash = "#/walk/attention";
  };
  return h(
    "button",
    { type: "button", class: "tile", on: { click: open } },
    miniature(weights),
    h("span", {}, t("heads.head", { head })),
    h("span", { class: "help" }, t(habit(weights))),
  );
}

/** The head that looks least at the first token, where heads look that have nothing to do. */
export function liveliest(maps) {
  const idle = maps.map((weights) => weights.reduce((sum, row) => sum + row[0], 0));
  return idle.indexOf(Math.min(...idle));
}

/** A plain description of where a head's weight goes on average. */
function habit(weights) {
  const rows = weights.slice(1);
  if (rows.length === 0) return "heads.mixed";
  const mean = (share) => rows.reduce((sum, row, index) => sum + share(row, index + 1), 0) / rows.length;
  const habits = [
    ["heads.first", mean((row) => row[0])],
    ["heads.previous", mean((row, query) => row[query - 1])],
    ["heads.self", mean((row, query) => row[query])],
  ];
  const [name, share] = habits.reduce((best, each) => (each[1] > best[1] ? each : best));
  return share > 0.5 ? name : "heads.mixed";
}
