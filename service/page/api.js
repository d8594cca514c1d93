// Speaks to the server that the page came from, and to nobody else.

import { askForKey } from "./key.js";

const KEY = "headlight.key";

/** An answer that is an error, in the server's own words. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `HTTP ${status}`);
    this.status = status;
    this.param = error?.param ?? null;
    this.code = error?.code ?? null;
  }
}

const missing = new Set();

/** Whether the server refused this optional field of a route's requests by its name. */
export function isMissing(path, field) {
  return missing.has(`${path} ${field}`);
}

/** The JSON that a GET answers. */
export async function get(path, { signal } = {}) {
  return (await request(path, { signal })).json();
}

/** The text that a GET answers. */
export async function getText(path, { signal } = {}) {
  return (await request(path, { signal })).text();
}

/** The JSON that a POST answers. Fields named `optional` are left out for a server that does not know them. */
export async function post(path, body, options = {}) {
  return (await posted(path, body, options)).json();
}

/** The JSON of each event that a POST answers. Raises ApiError for an error, also for one in the middle. */
export async function* stream(path, body, options = {}) {
  const response = await posted(path, { ...body, stream: true }, options);
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of chunks(response.body)) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice("data: ".length));
      if (event.error) throw new ApiError(500, event.error);
      yield event;
    }
  }
}

/** The pieces of a body as they come. Not every browser can iterate over a stream itself. */
async function* chunks(body) {
  const reader = body.getReader();
  try {
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) yield piece.value;
  } finally {
    await reader.cancel();
  }
}

async function posted(path, body, { signal, optional = [] }) {
  const sent = Object.fromEntries(Object.entries(body).filter(([name]) => !isMissing(path, name)));
  try {
    return await request(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(sent),
      signal,
    });
  } catch (error) {
    const unknown = ["unknown_parameter", "unsupported_parameter"].includes(error.code);
    const field = unknown && optional.find((name) => name in sent && name === error.param);
    if (!field) throw error;
    missing.add(`${path} ${field}`);
    return posted(path, body, { signal, optional });
  }
}

async function request(path, { headers = {}, ...options }) {
  const key = sessionStorage.getItem(KEY);
  const authorization = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers: { ...headers, ...authorization } });
  if (response.ok) return response;
  const error = new ApiError(response.status, await refusal(response));
  if (response.status !== 401) throw error;
  // Another request may have asked meanwhile.
  if (sessionStorage.getItem(KEY) === key) {
    const given = await askForKey(key !== null);
    if (given === null) throw error;
    sessionStorage.setItem(KEY, given);
  }
  return request(path, { headers, ...options });
}

async function refusal(response) {
  try {
    return (await response.json()).error;
  } catch {
    return null;
  }
}
