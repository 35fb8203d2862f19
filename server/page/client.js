// The page on the clients' listener.
import { BankView } from "./bank.js";
import { Chat } from "./chat.js";
import { learnColours } from "./experts.js";
import { LiveView } from "./live.js";
import { Shell, readiness } from "./shell.js";
import { applyTheme } from "./theme.js";
import { html, render, useEffect, useState } from "./ui.js";

function ChatView({ onKeyProblem }) {
  const [experts, setExperts] = useState([]);
  useEffect(() => {
    learnColours().then(
      ({ experts }) => setExperts(experts),
      (error) => error.isAboutKey && onKeyProblem(error),
    );
  }, []);
  return html`<${Chat} onKeyProblem=${onKeyProblem} experts=${experts} />`;
}

const views = [
  { id: "chat", title: "Chat", show: ({ onKeyProblem }) => html`<${ChatView} onKeyProblem=${onKeyProblem} />` },
  { id: "bank", title: "Bank", show: (props) => html`<${BankView} path="v1/bank" ...${props} />` },
  { id: "live", title: "Live", show: (props) => html`<${LiveView} ...${props} />` },
];

applyTheme();
render(html`<${Shell} title="SETA" keyName="API key" views=${views} watch=${readiness} />`, document.body);
