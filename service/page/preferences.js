// The language and the colours, which a person may choose.

import { h, select } from "./dom.js";
import { language, setLanguage, t } from "./language.js";
import { keep, kept } from "./storage.js";

const THEME = "headlight.theme";
const THEMES = ["light dark", "light", "dark"];

let theme = kept(THEME);
if (!THEMES.includes(theme)) theme = THEMES[0];

/** The choices; `render` draws the page anew in another language. */
export function preferences(render) {
  return h(
    "div",
    { class: "row preferences" },
    h("label", { class: "unseen", for: "language" }, t("language")),
    select("language", [["en", "English"], ["ko", "한국어"]], language(), async (name) => {
      setLanguage(name);
      await render();
      document.getElementById("language").focus();
    }),
    h("label", { class: "unseen", for: "theme" }, t("theme")),
    select("theme", THEMES.map((name) => [name, t(`theme.${name}`)]), theme, (name) => {
      theme = name;
      keep(THEME, name);
      paint();
    }),
  );
}

/** Puts the colours on the page. */
export function paint() {
  document.documentElement.style.colorScheme = theme;
}
