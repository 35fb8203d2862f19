// Dark or light: as the system says, until somebody switches. The choice is kept; a key never is.
import { useState } from "./ui.js";

const NAME = "seta.theme";
const NEXT = { system: "light", light: "dark", dark: "system" };
const stored = () => (localStorage.getItem(NAME) in NEXT ? localStorage.getItem(NAME) : "system");

export function applyTheme(theme = stored()) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export function useTheme() {
  const [theme, setTheme] = useState(stored());
  const next = () => {
    localStorage.setItem(NAME, NEXT[theme]);
    applyTheme(NEXT[theme]);
    setTheme(NEXT[theme]);
    dispatchEvent(new Event("themechange"));
  };
  return [theme, next];
}
