// Builds elements. Text is always set as text, never read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `properties` are attributes, but for `on` (listeners) and `style` (declarations, custom ones too). */
export function h(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

/** The same for a picture's elements. */
export function s(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

function filled(element, { on = {}, style = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

/** A token's text with its invisible characters made visible. */
export function shown(text) {
  if (text === "") return "∅";
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣").replace(/\p{Cc}/gu, (control) => {
    return `\\x${control.charCodeAt(0).toString(16).padStart(2, "0")}`;
  });
}

/** A token's text, but a part of a character in numbers, where its bytes are known.
 *
 * With the bytes `before` it that began the character, the part that ends it also shows the whole.
 */
export function spelled({ text, bytes, before = [] }) {
  if (!bytes || !text.includes("\uFFFD")) return shown(text);
  const whole = new TextDecoder().decode(new Uint8Array([...before, ...bytes]));
  return whole.includes("\uFFFD") ? hexadecimal(bytes) : `${hexadecimal(bytes)} → ${shown(whole)}`;
}

/** The tokens of a text in order, each with the bytes `before` it of a character that it goes on with. */
export function inOrder(tokens) {
  let before = [];
  return tokens.map((token) => {
    const placed = { ...token, before };
    before = begun([...before, ...(token.bytes ?? [])]);
    return placed;
  });
}

/** The bytes at the end that begin a character of UTF-8 and do not end it. */
export function begun(bytes) {
  const start = bytes.findLastIndex((byte) => byte >> 6 !== 0b10);
  const size = [0xf0, 0xe0, 0xc0].findIndex((lead) => bytes[start] >= lead);
  return size >= 0 && bytes.length - start < 4 - size ? bytes.slice(start) : [];
}

/** Bytes as numbers of two digits. */
export function hexadecimal(bytes) {
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
}

/** A button with a text. */
export function button(label, click, properties = {}) {
  return h("button", { type: "button", class: "quiet", on: { click }, ...properties }, label);
}

/** A field of a form: a label, its control, and a line of help below it. */
export function field(label, control, help) {
  if (help) {
    control.setAttribute("aria-describedby", `${control.id}-help`);
  }
  return h(
    "div",
    { class: "field" },
    h("label", { for: control.id }, label),
    control,
    help && h("p", { class: "help", id: `${control.id}-help` }, help),
  );
}

/** A list of facts, `pairs` being names and values. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** A part that scrolls by itself, also by keyboard. */
export function scrolled(label, ...children) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, ...children);
}

/** A list to choose one of, `options` being pairs of value and text. */
export function select(id, options, chosen, change) {
  return h(
    "select",
    { id, on: { change: (event) => change(event.target.value) } },
    options.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text)),
  );
}
