// What every view is written with: preact, its hooks, htm's templates. Text is always a text node, never markup.
import { h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export * from "./vendor/hooks.js";
export { render };
export const html = htm.bind(h);

export const bytes = (n) =>
  n >= 1 << 30 ? `${(n / (1 << 30)).toFixed(1)} GiB` : n >= 1 << 20 ? `${(n / (1 << 20)).toFixed(1)} MiB` : `${Math.ceil(n / 1024)} KiB`;
export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
export const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
export const date = (iso) => iso.replace("T", " ").replace(/(:\d\d)?Z$/, "");
export const milliseconds = (seconds) =>
  seconds === null || Number.isNaN(seconds) ? "–" : seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`;
