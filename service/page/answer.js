// One answer of the model as a row of tokens that can be pointed at and opened.
//
// To a screen reader the answer is one text; its tokens are a list box beside it, in which arrow keys move.

import { h, spelled } from "./dom.js";
import { bits, percent, t } from "./language.js";
import { leastEntropy } from "./distribution.js";

/** Entropy from which the shade grows no darker. */
const MOST_BITS = 6;

let count = 0;

/** What is known of one token of an answer. */
export class Token {
  /** `before` are the bytes of a character that earlier tokens have begun. */
  constructor(entry, text, before, inspection) {
    this.entry = entry;
    this.text = text;
    this.before = before;
    this.distribution = inspection?.distribution ?? null;
    this.isEnd = false;
  }

  get bytes() {
    return this.entry.bytes;
  }

  get name() {
    return spelled({ text: this.entry.token, bytes: this.bytes, before: this.before });
  }

  get probability() {
    return Math.exp(this.entry.logprob);
  }

  get alternatives() {
    return this.entry.top_logprobs;
  }

  /** Nats, of the model's own distribution. */
  get entropy() {
    return this.distribution?.stages[0].entropy ?? leastEntropy(this.alternatives.map(({ logprob }) => logprob));
  }

  get entropyText() {
    return this.distribution ? bits(this.entropy) : t("atLeast", { value: bits(this.entropy) });
  }
}

/** The row of tokens. `open` is called with a token that was clicked, or chosen with Enter. */
export class TokenRow {
  constructor(open) {
    this._open = open;
    this._tokens = [];
    this._at = -1;
    this._id = `row-${++count}`;
    this._tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this._row = h("div", {
      class: "tokens",
      role: "listbox",
      tabindex: "0",
      "aria-label": t("answer.tokens"),
      on: {
        keydown: (event) => this._key(event),
        pointerover: ({ target }) => target.role === "option" && this._point(this._index(target)),
        pointerleave: () => this._point(-1),
        blur: () => this._point(-1),
        click: ({ target }) => this._choose(this._index(target)),
      },
    });
    this.element = h("div", { class: "answer" }, this._row, this._tip);
  }

  push(token) {
    const index = this._tokens.push(token) - 1;
    this._row.append(
      h(
        "span",
        {
          role: "option",
          id: `${this._id}-${index}`,
          "aria-selected": "false",
          "aria-label": t("token.label", {
            text: token.isEnd ? t("answer.end") : token.name,
            probability: percent(token.probability),
          }),
          class: ["token", token.isEnd && "end", !token.isEnd && !token.text && "part"].filter(Boolean).join(" "),
          style: { "--doubt": Math.min(token.entropy / Math.LN2 / MOST_BITS, 1) },
        },
        token.isEnd ? t("answer.end") : token.text,
      ),
    );
  }

  focus() {
    this._row.focus();
  }

  /** Scrolls so far that the token which was opened ends above this height of the window. */
  moveAbove(top) {
    const { bottom } = this._row.querySelector("[aria-selected=true]").getBoundingClientRect();
    if (bottom > top) scrollBy(0, bottom - top + 12);
  }

  _index(target) {
    return target.role === "option" ? [...this._row.children].indexOf(target) : -1;
  }

  _key(event) {
    const last = this._tokens.length - 1;
    const moves = { ArrowRight: this._at + 1, ArrowLeft: this._at - 1, Home: 0, End: last };
    if (event.key in moves && last >= 0) {
      event.preventDefault();
      this._point(Math.min(Math.max(moves[event.key], 0), last));
    } else if ((event.key === "Enter" || event.key === " ") && this._at >= 0) {
      event.preventDefault();
      this._choose(this._at);
    } else if (event.key === "Escape") {
      this._point(-1);
    }
  }

  /** Marks the token at `index`, and tells about it; -1 for none. */
  _point(index) {
    this._row.children[this._at]?.classList.remove("at");
    this._at = index;
    this._tip.hidden = index < 0;
    if (index < 0) {
      this._row.removeAttribute("aria-activedescendant");
      return;
    }
    const token = this._tokens[index];
    const element = this._row.children[index];
    element.classList.add("at");
    this._row.setAttribute("aria-activedescendant", element.id);
    this._tip.replaceChildren(
      h("strong", {}, percent(token.probability)),
      h("span", {}, t("tip.entropy", { value: token.entropyText })),
    );
    this._place(element);
  }

  /** Puts the tip below its token, inside the row's width. */
  _place(element) {
    const [box] = element.getClientRects();
    const around = this.element.getBoundingClientRect();
    if (!box) return;
    const most = around.width - this._tip.offsetWidth;
    this._tip.style.left = `${Math.max(Math.min(box.left - around.left, most), 0)}px`;
    this._tip.style.top = `${box.bottom - around.top + 4}px`;
  }

  _choose(index) {
    if (index < 0) return;
    for (const [i, element] of [...this._row.children].entries()) {
      element.setAttribute("aria-selected", String(i === index));
    }
    this._open(this._tokens[index], this);
  }
}
