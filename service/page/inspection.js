// One look inside, whose numbers are in the document itself: the page that `headlight inspect --html` writes.

import { waterfall } from "./distribution.js";
import { h, select, shown } from "./dom.js";
import { language, t } from "./language.js";
import { paint, preferences } from "./preferences.js";
import { chips } from "./steps/chips.js";
import { picker } from "./steps/controls.js";
import { feedforward } from "./steps/feedforward.js";
import { lens } from "./steps/lens.js";
import { matrix } from "./steps/matrix.js";
import { nearest } from "./steps/nearest.js";

const answer = JSON.parse(document.getElementById("answer").textContent);
/** What the steps of the walk take: the tokens that were looked at are the first ones. */
const base = {
  tokens: answer.tokens.slice(0, answer.positions.length),
  residual: answer.residual,
  layers: answer.residual ? answer.residual.added.shape[0] / 2 : 0,
};
const chosen = { map: 0, position: base.tokens.length - 1 };
/** Each view that the answer may have, in the order of the page. */
const VIEWS = {
  embedding: () => [h("h2", {}, t("embedding.nearest")), nearest(base, answer.embedding)],
  attention: attentionView,
  lens: () => lens({ look: { lens: () => answer }, base }),
  residual: residualView,
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

/** The map of one of the heads that were asked for, and their choice by layer and head. */
function attentionView() {
  const { heads, data } = answer.attention;
  const place = h("div", { class: "figures" });
  const choice = h("div", { class: "field" });
  const names = base.tokens.map(({ text }) => shown(text));
  const layers = [...new Set(heads.map(([layer]) => layer))];

  function choose(map) {
    chosen.map = map;
    const [layer, head] = heads[map];
    const others = heads.flatMap((each, index) => (each[0] === layer ? [[index, each[1]]] : []));
    const focused = choice.contains(document.activeElement);
    choice.replaceChildren(h("label", { for: "head" }, t("head")), select("head", others, map, (value) => choose(Number(value))));
    if (focused) choice.querySelector("select").focus();
    draw(layer, head);
  }

  function draw(layer, head) {
    const state = { chosen: { layer, head, position: chosen.position }, redraw: () => keepFocus(() => draw(layer, head), place, state) };
    place.replaceChildren(h("h2", {}, t("attention.one", { layer, head })), matrix(names, data[chosen.map], state));
  }

  function keepFocus(redraw, place, state) {
    chosen.position = state.chosen.position;
    redraw();
    place.querySelector(`[aria-pressed="true"]`)?.focus();
  }

  const layer = picker("layer", t("layer"), layers.map((each) => [each, each]), heads[chosen.map][0], (value) => choose(heads.findIndex(([each]) => each === value)));
  choose(chosen.map);
  return [h("div", { class: "row controls" }, layer, choice), place];
}

function residualView() {
  const place = h("div", { class: "figures" });
  function draw() {
    const focused = place.contains(document.activeElement);
    place.replaceChildren(...feedforward({ base, chosen, redraw: draw }));
    if (focused) place.querySelector("select").focus();
  }
  draw();
  return place;
}

function distributionView(distribution) {
  const { text } = answer.tokens[distribution.position];
  return [h("h2", {}, t("softmax.label", { token: shown(text) })), h("p", { class: "help" }, t("waterfall.help")), waterfall(distribution)];
}

paint();
render();
