// One look inside, whose numbers are in the document itself: the page that `headlight inspect --html` writes.

import { waterfall } from "./distribution.js";
import { h, inOrder, select, spelled } from "./dom.js";
import { language, t } from "./language.js";
import { paint, preferences } from "./preferences.js";
import { chips } from "./steps/chips.js";
import { picker, positionPicker } from "./steps/controls.js";
import { dimensions } from "./steps/dimensions.js";
import { encoding } from "./steps/encoding.js";
import { residual } from "./steps/feedforward.js";
import { grid } from "./steps/lens.js";
import { matrix } from "./steps/matrix.js";
import { nearest } from "./steps/nearest.js";
import { bytes, spellings } from "./steps/tokens.js";

const answer = JSON.parse(document.getElementById("answer").textContent);
answer.tokens = inOrder(answer.tokens);
/** What the steps of the walk take. */
const base = { ...answer, layers: answer.residual ? answer.residual.added.shape[0] / 2 : 0 };
const chosen = { map: 0, position: answer.positions.at(-1) };
/** Each view that the answer may have, in the order of the page. */
const VIEWS = {
  text: () => [h("h2", {}, t("tokens.bytes")), h("p", { class: "help" }, t("tokens.bytes.help")), bytes(answer.tokens)],
  spellings: () => spellings(answer),
  embedding: () => [
    h("h2", {}, t("embedding.nearest")),
    nearest(at(answer.positions), answer.embedding),
    h("p", { class: "help" }, t("embedding.unit")),
    answer.embedding.vectors ? byPosition(dimensionsOf) : null,
  ],
  position_encoding: () => byPosition(encodingOf),
  attention: attentionView,
  lens: () => grid(answer.tokens, answer),
  residual: () => byPosition(residual),
  distributions: () => answer.distributions.map(distributionView),
};

async function render() {
  document.documentElement.lang = language();
  document.title = `${t("inspection.title", { model: answer.model })} · Headlight`;
  const asked = Object.keys(VIEWS).filter((name) => answer[name]);
  const views = await Promise.all(asked.map(async (name) => h("section", { class: "figures", id: name }, await VIEWS[name]())));
  document.body.replaceChildren(
    h("header", { class: "head" }, h("p", { class: "mark" }, "Headlight"), h("p", { class: "model", title: t("model") }, answer.model), preferences(render)),
    h(
      "main",
      { id: "main" },
      h(
        "article",
        { class: "step" },
        h("h1", {}, t("inspection.title", { model: answer.model })),
        h("section", { class: "figures", id: "tokens" }, h("h2", {}, t("tokens.prompt", { count: answer.tokens.length })), chips(answer.tokens)),
        views,
      ),
    ),
  );
}

/** One of the maps that were asked for, and their choice by layer and head, or by layer where heads are reduced. */
function attentionView() {
  const { heads, layers: reduced, shape } = answer.attention;
  if (!shape.every((size) => size > 0)) return [];
  const maps = heads ?? reduced.map((layer) => [layer]);
  const place = h("div", { class: "figures" });
  const choice = h("div", { class: "field" });
  const layers = [...new Set(maps.map(([layer]) => layer))];

  function choose(map) {
    chosen.map = map;
    const [layer] = maps[map];
    if (heads) {
      const others = heads.flatMap((each, index) => (each[0] === layer ? [[index, each[1]]] : []));
      const focused = choice.contains(document.activeElement);
      choice.replaceChildren(h("label", { for: "head" }, t("head")), select("head", others, map, (value) => choose(Number(value))));
      if (focused) choice.querySelector("select").focus();
    }
    draw();
  }

  function draw() {
    const [layer, head] = maps[chosen.map];
    const [title, label] = heads ? ["attention.one", "attention.label"] : ["attention.reduced", "attention.reduced.label"];
    place.replaceChildren(
      h("h2", {}, t(title, { layer, head })),
      matrix(base, weightsOf(chosen.map), t(label, { layer, head }), { chosen, redraw: redrawn }),
      ...(answer.attention.keys ? [h("p", { class: "help" }, t("attention.top", { count: shape.at(-1) }))] : []),
    );
  }

  function redrawn() {
    draw();
    place.querySelector(`[aria-pressed="true"]`)?.focus();
  }

  const layer = picker("layer", t("layer"), layers.map((each) => [each, each]), maps[chosen.map][0], (value) => choose(maps.findIndex(([each]) => each === value)));
  choose(chosen.map);
  return [h("div", { class: "row controls" }, layer, heads && choice), place].filter(Boolean);
}

/** The weights [positions][keys] of a map; null where only the heaviest keys were asked for and this is another. */
function weightsOf(map) {
  const { data, keys } = answer.attention;
  if (!keys) return data[map];
  const width = answer.positions.at(-1) + 1;
  return data[map].map((row, query) => {
    const wide = Array(width).fill(null);
    row.forEach((weight, place) => {
      if (keys[map][query][place] >= 0) wide[keys[map][query][place]] = weight;
    });
    return wide;
  });
}

/** The tokens at these positions. */
function at(positions) {
  return positions.map((position) => answer.tokens[position]);
}

/** A figure of one position, which `make` makes anew when another is chosen. */
function byPosition(make) {
  const place = h("div", { class: "figures" });
  const own = { position: chosen.position };
  function draw() {
    const focused = place.contains(document.activeElement);
    place.replaceChildren(...make({ base, chosen: own, redraw: draw }));
    if (focused) place.querySelector("select").focus();
  }
  draw();
  return place;
}

function encodingOf(state) {
  const { position } = state.chosen;
  const title = t("position.encoding", { position, token: spelled(answer.tokens[position]) });
  const row = answer.positions.indexOf(position);
  return [h("div", { class: "row controls" }, positionPicker(state, t("position"), "encoded")), h("h2", {}, title), ...encoding(answer.position_encoding, row)];
}

function dimensionsOf(state) {
  const { position } = state.chosen;
  const vector = answer.embedding.vectors.data[answer.positions.indexOf(position)];
  const choice = h("div", { class: "row controls" }, positionPicker(state, t("position"), "embedded"));
  return [h("h2", {}, t("dimensions.title")), choice, dimensions(vector, spelled(answer.tokens[position]))];
}

function distributionView(distribution) {
  const { position, setting } = distribution;
  const label = t("softmax.label", { token: spelled(answer.tokens[position]) });
  const title = setting === undefined ? label : t("softmax.setting", { title: label, setting });
  return [h("h2", {}, title), h("p", { class: "help" }, t("waterfall.help")), waterfall(distribution, { label: t("waterfall.at", { title, position }) })];
}

paint();
render();
