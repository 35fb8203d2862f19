// An archive of a generation (`seta bank export`): its manifest read here, its bytes sent to the server.
import { Failure, address, failureOf, headers } from "./api.js";

const BLOCK = 512;
const MAX_MANIFEST_BYTES = 32 << 20;
const text = (bytes) => new TextDecoder().decode(bytes).replace(/\0.*$/s, "").trim();

// The manifest, the first member of the tar. Throws an Error that says what is wrong with the file.
export async function manifestOf(file) {
  const header = new Uint8Array(await file.slice(0, BLOCK).arrayBuffer());
  const size = parseInt(text(header.slice(124, 136)), 8);
  const isOurs = text(header.slice(0, 100)) === "manifest.json" && text(header.slice(257, 263)).startsWith("ustar");
  if (!isOurs || !(size > 0 && size <= MAX_MANIFEST_BYTES)) {
    throw new Error(`${file.name} is no archive of a generation; seta bank export writes one`);
  }
  try {
    const manifest = JSON.parse(await file.slice(BLOCK, BLOCK + size).text());
    if (!Number.isInteger(manifest.generation) || !Array.isArray(manifest.experts)) throw new Error();
    return manifest;
  } catch {
    throw new Error(`The manifest in ${file.name} cannot be read; export the generation again`);
  }
}

// Sends the file; `onProgress(share)` is called as it goes. fetch cannot tell how far it is. Throws a Failure.
export function upload(file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address("admin/v1/generations"));
    const sent = headers({ "content-type": "application/x-tar" });
    Object.entries(sent).forEach(([name, value]) => request.setRequestHeader(name, value));
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () =>
      request.status === 200 ? resolve(JSON.parse(request.responseText)) : reject(failureOf(request.status, request.responseText));
    request.onerror = () => reject(new Failure(0, "The connection was lost; nothing is in the bank unless the server says so"));
    request.onabort = () => reject(new Failure(0, "The upload was stopped"));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
