// Self-attention: one head large, as a matrix or as lines, and one query followed through the layers.

import { button, h, s, spelled } from "../dom.js";
import { heat } from "../heat.js";
import { percent, t } from "../language.js";
import { eventually } from "../states.js";
import { headPicker, layerPicker, positionPicker } from "./controls.js";
import { liveliest } from "./heads.js";
import { matrix } from "./matrix.js";
import { parameters } from "./parameters.js";

export async function attention(state) {
  const { inspector, base, chosen, redraw } = state;
  const [maps, { size }] = await Promise.all([inspector.attention(chosen.layer), inspector.model()]);
  const names = base.tokens.map(spelled);
  chosen.head ??= liveliest(maps);
  const weights = maps[chosen.head];
  chosen.form ??= "matrix";
  const form = (name) =>
    button(t(`attention.${name}`), () => {
      chosen.form = name;
      redraw();
    }, { "aria-pressed": String(chosen.form === name) });
  const label = t("attention.label", { layer: chosen.layer, head: chosen.head });
  return [
    parameters(size, ["attention"]),
    h("div", { class: "row controls" }, layerPicker(state), headPicker(state, maps.length), positionPicker(state, t("attention.query")), h("div", { class: "row forms", role: "group", "aria-label": t("attention.form") }, form("matrix"), form("lines"))),
    h("h2", {}, t("attention.one", { layer: chosen.layer, head: chosen.head })),
    chosen.form === "matrix" ? matrix(base, weights, label, state) : lines(names, weights, chosen.position),
    h("h2", {}, t("attention.through", { token: names[chosen.position] })),
    h("p", { class: "help" }, t("attention.through.help")),
    eventually(async () => through(names, await inspector.through(chosen.position), state)),
  ];
}

/** Keys on the left, queries on the right; the chosen query's lines stand out. */
function lines(names, weights, position) {
  const [height, left, right, width] = [28, 126, 234, 360];
  const y = (index) => height * (index + 0.5);
  const label = (name, index, x, anchor) => s("text", { x, y: y(index) + 5, "text-anchor": anchor, class: index === position && anchor === "start" ? "marked" : null }, name.slice(0, 14));
  return h(
    "figure",
    {},
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": t("attention.lines") },
      s(
        "svg",
        { class: "lines", viewBox: `0 0 ${width} ${height * names.length}`, role: "img", "aria-label": t("attention.lines.label", { query: names[position] }) },
        weights[position].slice(0, position + 1).map((weight, key) =>
          s("line", { x1: left, x2: right, y1: y(key), y2: y(position), style: { "--share": Math.sqrt(weight) } }, s("title", {}, `${names[key]}: ${percent(weight)}`)),
        ),
        names.map((name, index) => label(name, index, left - 8, "end")),
        names.map((name, index) => label(name, index, right + 8, "start")),
      ),
    ),
    h("p", { class: "reading" }, strongest(names, weights[position].slice(0, position + 1))),
  );
}

function strongest(names, row) {
  const order = row.map((weight, key) => [weight, key]).sort(([a], [b]) => b - a);
  return order.slice(0, 4).map(([weight, key]) => `${names[key]} ${percent(weight)}`).join(" · ");
}

function through(names, layers, { chosen }) {
  const keys = names.slice(0, chosen.position + 1);
  const mean = layers.map((heads) => keys.map((_, key) => heads.reduce((sum, row) => sum + row[key], 0) / heads.length));
  const rows = layers.map((_, layer) => t("layer.short", { layer }));
  return heat({
    label: t("attention.through.label"),
    unit: t("attention.weight"),
    rows,
    columns: keys,
    chosen: chosen.layer,
    value: (layer, key) => mean[layer][key],
    read: (layer, key) => t("attention.through.read", { layer, key: keys[key], share: percent(mean[layer][key]) }),
  });
}
