// The choices that several steps share: a layer, a head, a position.

import { h, select, spelled } from "../dom.js";
import { t } from "../language.js";

/** A list to choose a number from, `options` being pairs of number and text. */
export function picker(id, label, options, value, change) {
  return h("div", { class: "field" }, h("label", { for: id }, label), select(id, options, value, (text) => change(Number(text))));
}

function upTo(count) {
  return Array.from({ length: count }, (_, index) => [index, index]);
}

export function layerPicker({ base, chosen, redraw }) {
  return picker("layer", t("layer"), upTo(base.layers), chosen.layer, (layer) => {
    chosen.layer = layer;
    redraw();
  });
}

export function headPicker({ chosen, redraw }, heads) {
  return picker("head", t("head"), upTo(heads), chosen.head, (head) => {
    chosen.head = head;
    redraw();
  });
}

export function positionPicker({ base, chosen, redraw }, label, id = "position") {
  const options = base.positions.map((position) => [position, `${position}  ${spelled(base.tokens[position])}`]);
  return picker(id, label, options, chosen.position, (position) => {
    chosen.position = position;
    redraw();
  });
}
