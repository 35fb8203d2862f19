// How the page speaks to the listener it came from: one key, kept for this browser tab only, and errors as objects.
const KEY = "seta.key";
const BASE = new URL(".", document.baseURI); // works behind a proxy that serves us under a prefix
let listeners = [];

export const key = () => sessionStorage.getItem(KEY) ?? "";

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  listeners.forEach((listener) => listener());
}

export function onKeyChange(listener) {
  listeners = [...listeners, listener];
  return () => (listeners = listeners.filter((one) => one !== listener));
}

export class Failure extends Error {
  // status 0: the server did not answer. `code` is the server's, for programs.
  constructor(status, message, code = null, details = null) {
    super(message);
    Object.assign(this, { status, code, details });
  }

  get isAboutKey() {
    return this.status === 401 || this.code === "wrong_listener";
  }
}

export function headers(more = {}) {
  return key() ? { authorization: `Bearer ${key()}`, ...more } : more;
}

export const address = (path) => new URL(path, BASE);

// A response whose status is a success. Throws a Failure, or an AbortError if `signal` ended it.
export async function send(path, { body, method = body === undefined ? "GET" : "POST", signal } = {}) {
  const isJson = body !== undefined;
  let response;
  try {
    response = await fetch(address(path), {
      method,
      signal,
      headers: headers(isJson ? { "content-type": "application/json" } : {}),
      body: isJson ? JSON.stringify(body) : undefined,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    throw unreachable(error);
  }
  if (!response.ok) throw await failureOf(response.status, await response.text());
  return response;
}

export const getJson = async (path, options) => (await send(path, options)).json();
export const getText = async (path, options) => (await send(path, options)).text();

export function unreachable(error) {
  if (error.name === "AbortError" || error instanceof Failure) return error;
  return new Failure(0, "The server does not answer; it may be starting again");
}

export function failureOf(status, text) {
  try {
    const { message, code, details } = JSON.parse(text).error;
    return new Failure(status, message, code, details);
  } catch {
    return new Failure(status, `The server answered with status ${status}`);
  }
}
