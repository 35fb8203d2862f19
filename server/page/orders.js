// Dialogs in which an administrator sees what an order would do, gives it, and sees what came of it.
import { getJson } from "./api.js";
import { manifestOf, upload } from "./archive.js";
import { Change } from "./change.js";
import { hueOf } from "./experts.js";
import { bytes, html, percent, plural, useEffect, useRef, useState } from "./ui.js";

export const ADMIN = "admin/v1/";

// One generation; its experts get their colours in the order that the bank has them.
async function generation(number) {
  const found = await getJson(`${ADMIN}generations/${number}`);
  found.experts.forEach((expert) => hueOf(expert.id));
  return found;
}

async function compare(serving, number) {
  const from = await generation(serving);
  return [from, await generation(number)];
}

function Dialog({ title, onClose, children }) {
  const dialog = useRef();
  useEffect(() => dialog.current.showModal(), []);
  const onCancel = (event) => {
    event.preventDefault();
    onClose();
  };
  return html`<dialog ref=${dialog} onCancel=${onCancel} aria-label=${title}><div class="body"><h2>${title}</h2>${children}</div></dialog>`;
}

export const Problem = ({ error }) => error && html`
  <p class="problem" role="alert">${error.message}${error.code ? html` <code>${error.code}</code>` : ""}</p>`;

// Activate `number`, or roll back to it. The order holds only if `serving` still serves: what was shown is what happens.
export function Switch({ order, number, serving, inFlight, onDone, onClose }) {
  const [both, setBoth] = useState(null);
  const [error, setError] = useState(null);
  const [isGiven, setGiven] = useState(false);
  useEffect(() => {
    compare(serving, number).then(setBoth, setError);
  }, []);
  const give = async () => {
    setGiven(true);
    setError(null);
    const body = order === "activate" ? { generation: number, expected_generation: serving } : { expected_generation: serving };
    try {
      const done = await getJson(ADMIN + order, { body });
      onDone(`Generation ${done.serving} serves, ${done.previous} did before (${done.seconds.toFixed(2)} s).`);
    } catch (problem) {
      setError(problem);
      setGiven(false);
    }
  };
  const isBack = order === "rollback";
  return html`
    <${Dialog} title=${isBack ? `Roll back to generation ${number}?` : `Activate generation ${number}?`} onClose=${onClose}>
      ${both ? html`<${Change} from=${both[0]} to=${both[1]} />` : !error && html`<p class="soft">Comparing…</p>`}
      <p>New requests get generation ${number}. ${inFlight > 0
        ? `${plural(inFlight, "request")} that ${inFlight === 1 ? "runs" : "run"} on generation ${serving} now will end on it.`
        : `Requests that run on generation ${serving} end on it.`}</p>
      <${Problem} error=${error} />
      <menu>
        <button onClick=${onClose}>Cancel</button>
        <button class="strong" onClick=${give} disabled=${!both || isGiven}>${isGiven ? "Loading…" : isBack ? "Roll back" : "Activate"}</button>
      </menu>
    <//>`;
}

// Choose an archive, see what it holds and what the bank lacks, send it.
export function Upload({ serving, onDone, onClose }) {
  const [chosen, setChosen] = useState(null); // {file, manifest, missing, from}
  const [error, setError] = useState(null);
  const [share, setShare] = useState(null);
  const sending = useRef(null);
  const choose = async (event) => {
    const [file] = event.target.files;
    setChosen(null);
    setError(null);
    if (!file) return;
    try {
      const manifest = await manifestOf(file);
      const [missing, from] = await Promise.all([getJson(`${ADMIN}generations/missing`, { body: manifest }), generation(serving)]);
      setChosen({ file, manifest, missing, from });
    } catch (problem) {
      setError(problem);
    }
  };
  const send = async () => {
    sending.current = new AbortController();
    setShare(0);
    setError(null);
    try {
      const done = await upload(chosen.file, setShare, sending.current.signal);
      onDone(`Generation ${done.generation} is in the bank. It serves once it is activated.`);
    } catch (problem) {
      setError(problem);
    }
    setShare(null);
  };
  const close = () => (share === null ? onClose() : sending.current.abort());
  return html`
    <${Dialog} title="Upload a generation" onClose=${close}>
      <label class="file"><span>An archive, as <code>seta bank export</code> writes it</span>
        <input type="file" accept=".tar,application/x-tar" onChange=${choose} disabled=${share !== null} /></label>
      ${chosen && html`<${Contents} ...${chosen} />`}
      ${share !== null && html`<progress value=${share} max="1">${percent(share)}</progress>`}
      ${share === 1 && html`<p class="soft">Sent; the server verifies it…</p>`}
      <${Problem} error=${error} />
      <menu>
        <button onClick=${close}>${share === null ? "Cancel" : "Stop"}</button>
        <button class="strong" onClick=${send} disabled=${!chosen || chosen.missing.is_in_bank || share !== null}>Upload</button>
      </menu>
    <//>`;
}

function Contents({ file, manifest, missing, from }) {
  const lacking = missing.objects.reduce((sum, one) => sum + one.object_bytes, 0);
  return html`
    <p>${missing.is_in_bank
      ? `Generation ${manifest.generation} is in the bank already.`
      : `Generation ${manifest.generation}, ${bytes(file.size)} to send; ${lacking ? `${bytes(lacking)} of it are new to the bank` : "the bank has all of its parts"}. It serves nobody until it is activated. Compared with what serves now:`}</p>
    ${!missing.is_in_bank && html`<${Change} from=${from} to=${manifest} />`}`;
}
