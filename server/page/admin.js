// The page on the administrators' listener. It shows no text that a model wrote.
import { BankView } from "./bank.js";
import { GenerationsView } from "./generations.js";
import { LiveView } from "./live.js";
import { ADMIN } from "./orders.js";
import { Shell, readiness } from "./shell.js";
import { applyTheme } from "./theme.js";
import { html, render } from "./ui.js";

const views = [
  { id: "generations", title: "Generations", show: (props) => html`<${GenerationsView} ...${props} />` },
  { id: "bank", title: "Bank", show: (props) => html`<${BankView} path="${ADMIN}bank" ...${props} />` },
  { id: "live", title: "Live", show: (props) => html`<${LiveView} ...${props} />` },
];

applyTheme();
render(html`<${Shell} title="SETA admin" keyName="Admin key" views=${views} watch=${readiness} />`, document.body);
