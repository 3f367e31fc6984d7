// Talking to the server: JSON, and server-sent events read from a fetch, which can be stopped and carries a key.

import { keptKey } from "./state.js";

/** What went wrong, as the server said it; `status` 0 where it said nothing. */
export class ServerError extends Error {
  constructor(message, status = 0, type = "") {
    super(message);
    this.status = status;
    this.type = type;
  }
}

const GONE = "The server cannot be reached: is `flatlm webui` still running?";
const CUT = "The server went away before the answer was complete.";

/** The cards of the models: GET /ui/models. */
export async function models() {
  return (await (await send("/ui/models")).json()).models;
}

/** Markdown to HTML: POST /ui/markdown. */
export async function markdown(text) {
  return (await (await send("/ui/markdown", { text })).json()).html;
}

/** The events of a stream, parsed, as they come. Throws ServerError, or AbortError where `signal` stops it. */
export async function* stream(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await read(reader, signal);
      if (done) throw new ServerError(CUT);
      const events = (held + value.replaceAll("\r", "")).split("\n\n");
      held = events.pop();
      for (const event of events) {
        const data = payload(event);
        if (data === "[DONE]") return;
        if (data) yield parsed(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    throw signal?.aborted ? error : new ServerError(CUT);
  }
}

function payload(event) {
  const lines = event.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}

function parsed(data) {
  const event = JSON.parse(data);
  if (event.error) throw new ServerError(event.error.message, event.error.status ?? 0, event.error.type);
  return event;
}

async function send(path, body, signal) {
  const headers = {};
  if (keptKey()) headers.Authorization = `Bearer ${keptKey()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    throw signal?.aborted ? error : new ServerError(GONE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  let message = text.slice(0, 500) || response.statusText;
  let type = "";
  try {
    ({ message, type } = JSON.parse(text).error);
  } catch {
    // Not in the API's form: what came is shown.
  }
  return new ServerError(message, response.status, type);
}
