// The server's interface (`GET /api/v1/openapi.json`), as functions. Errors are one class; a server that does not answer is
// noticed here and nowhere else.

import { readColumns } from "./columns.js";

/** A refusal or failure, in the server's words. */
export class ApiError extends Error {
  /** @param {number} status 0: no answer @param {string} kind @param {string} message @param {string|null} [hint] @param {any} [body] */
  constructor(status, kind, message, hint = null, body = null) {
    super(message);
    this.status = status;
    this.kind = kind;
    this.hint = hint;
    this.body = body;
  }
}

/** Whether it was given up on purpose. @param {unknown} error */
export const isAbort = (error) => error instanceof DOMException && error.name === "AbortError";

/** @typedef {{node_threshold: number|null, edge_threshold: number|null}} Thresholds */
/** @typedef {{id: string, kind: string, state: string, result?: any, error?: any, progress?: any, ahead?: number}} Job */

/** @param {Record<string, unknown>} params */
function query(params) {
  const out = new URLSearchParams();
  for (const [key, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== "") out.set(key, String(value));
  }
  const text = out.toString();
  return text ? `?${text}` : "";
}

const part = encodeURIComponent;

export class Api {
  constructor() {
    this.base = "api/v1/";
    this.online = true;
    /** @type {(online: boolean) => void} */
    this.ononline = () => {};
  }

  /** @param {string} path @param {RequestInit} [init] @returns {Promise<Response>} */
  async ask(path, init) {
    let response;
    try {
      response = await fetch(this.base + path, init);
    } catch (error) {
      if (isAbort(error)) throw error;
      this.mark(false);
      throw new ApiError(0, "offline", "the server does not answer");
    }
    this.mark(true);
    if (response.ok || response.status === 304) return response;
    const body = await response.json().catch(() => null);
    const error = body?.error;
    if (error && typeof error === "object")
      throw new ApiError(response.status, String(error.kind), String(error.message), error.hint ?? null, body);
    throw new ApiError(response.status, "http", `the server answers ${response.status}`);
  }

  /** @param {boolean} online */
  mark(online) {
    if (online === this.online) return;
    this.online = online;
    this.ononline(online);
  }

  /** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
  async get(path, signal) {
    return (await this.ask(path, { signal })).json();
  }

  /** @param {string} path @param {unknown} body @param {{signal?: AbortSignal, method?: string, headers?: Record<string, string>}} [options] */
  send(path, body, { signal, method = "POST", headers = {} } = {}) {
    return this.ask(path, {
      method,
      signal,
      headers: { "content-type": "application/json", ...headers },
      body: JSON.stringify(body),
    });
  }

  /** @param {string} path @param {unknown} body @param {AbortSignal} [signal] @returns {Promise<any>} */
  async post(path, body, signal) {
    return (await this.send(path, body, { signal })).json();
  }

  /** What another site knows of a feature of a published set. @param {number} layer @param {number} index @param {AbortSignal} [signal] */
  published(layer, index, signal) {
    return this.get(`features/${layer}/${index}/published`, signal);
  }
  health() {
    return this.get("health");
  }
  /** @param {string} token */
  session(token) {
    return this.send("session", { token });
  }
  graphs() {
    return this.get("graphs");
  }
  /** A graph's header, without the summary if it is not wanted. @param {string} id @param {Thresholds} at @param {boolean} summary @param {AbortSignal} [signal] */
  graph(id, at, summary, signal) {
    return this.get(`graphs/${part(id)}${query({ ...at, summary: summary ? null : false })}`, signal);
  }

  /** @param {string} path @param {AbortSignal} [signal] */
  async columns(path, signal) {
    const response = await this.ask(path, { signal });
    return readColumns(await response.arrayBuffer());
  }
  /** @param {string} id @param {AbortSignal} [signal] */
  nodes(id, signal) {
    return this.columns(`graphs/${part(id)}/nodes.bin`, signal);
  }
  /** @param {string} id @param {Thresholds} at @param {number} top @param {AbortSignal} [signal] */
  links(id, at, top, signal) {
    return this.columns(`graphs/${part(id)}/links.bin${query({ ...at, top })}`, signal);
  }
  /**
   * @param {string} id @param {string|number} n @param {Thresholds} at
   * @param {{side?: string, offset?: number, limit?: number, whole?: boolean}} [options] @param {AbortSignal} [signal]
   */
  nodeLinks(id, n, at, options = {}, signal) {
    return this.get(`graphs/${part(id)}/node/${part(String(n))}/links${query({ ...at, ...options })}`, signal);
  }
  /** @param {string} id @param {Thresholds} at @param {{from?: string, to?: string, k?: number}} ends */
  paths(id, at, ends) {
    return this.get(`graphs/${part(id)}/paths${query({ ...at, ...ends })}`);
  }
  /** @param {string} id @param {Thresholds} at */
  autoGroups(id, at) {
    return this.get(`graphs/${part(id)}/groups/auto${query({ ...at })}`);
  }
  /** @param {string} id @param {string[]} nodes @param {Thresholds} at @param {AbortSignal} [signal] */
  scores(id, nodes, at, signal) {
    return this.post(`graphs/${part(id)}/scores`, { nodes, ...at }, signal);
  }
  /** @param {string} id @param {object} of @param {AbortSignal} [signal] */
  layout(id, of, signal) {
    return this.post(`graphs/${part(id)}/layout`, of, signal);
  }
  /** @param {string} id @param {string} other @param {Thresholds} at */
  diff(id, other, at) {
    return this.get(`graphs/${part(id)}/diff/${part(other)}${query({ ...at })}`);
  }
  /** @param {string} id @param {string} q @param {Thresholds} at @param {AbortSignal} [signal] */
  search(id, q, at, signal) {
    return this.get(`graphs/${part(id)}/search${query({ ...at, q, limit: 40 })}`, signal);
  }
  /** @param {string} id @param {string} format */
  exportUrl(id, format) {
    return `${this.base}graphs/${part(id)}/export.${format}`;
  }

  /** @param {string} id */
  async view(id) {
    const response = await this.ask(`graphs/${part(id)}/view`);
    return { view: await response.json(), etag: response.headers.get("etag") ?? "" };
  }
  /** @param {string} id @param {object} view @param {string} etag */
  async saveView(id, view, etag) {
    const response = await this.send(`graphs/${part(id)}/view`, view, { method: "PUT", headers: { "if-match": etag } });
    return { view: await response.json(), etag: response.headers.get("etag") ?? "" };
  }
  /** @param {string} id */
  saveGraph(id) {
    return this.post(`graphs/${part(id)}/save`, {});
  }

  /** @param {string} prompt @param {AbortSignal} [signal] */
  tokenize(prompt, signal) {
    return this.post("tokenize", { prompt }, signal);
  }
  /** @param {string} prompt @param {number|null} position @param {AbortSignal} [signal] */
  topTokens(prompt, position, signal) {
    return this.post("top-tokens", { prompt, position, k: 10 }, signal);
  }

  features() {
    return this.get("features");
  }
  /** @param {string} q @param {AbortSignal} [signal] */
  searchFeatures(q, signal) {
    return this.get(`features/search${query({ q, limit: 20 })}`, signal);
  }
  /** @param {number} layer @param {number} feature @param {boolean} neighbors @param {AbortSignal} [signal] */
  feature(layer, feature, neighbors, signal) {
    return this.get(`features/${layer}/${feature}${query({ neighbors: neighbors || null })}`, signal);
  }
  /** @param {number} layer @param {number} feature @param {string} text @param {AbortSignal} [signal] */
  onText(layer, feature, text, signal) {
    return this.post(`features/${layer}/${feature}/on-text`, { text }, signal);
  }

  /** @param {string} job */
  cancel(job) {
    return this.ask(`jobs/${part(job)}`, { method: "DELETE", headers: { "content-type": "application/json" } });
  }

  /**
   * Asks for work and follows it to its end. The stream is taken up again where it broke off.
   * @param {object} request
   * @param {{onevent?: (name: string, data: any) => void, onjob?: (job: Job) => void, signal?: AbortSignal}} [options] aborting cancels the work
   * @returns {Promise<any>} the result
   */
  async run(request, { onevent, onjob, signal } = {}) {
    const job = await this.post("jobs", request, signal);
    onjob?.(job);
    const stop = () => {
      this.cancel(job.id).catch(() => {});
    };
    signal?.addEventListener("abort", stop, { once: true });
    let last = "";
    try {
      for (let tries = 0; ; tries++) {
        const response = await this.ask(`jobs/${part(job.id)}/events`, {
          signal,
          headers: last ? { "last-event-id": last } : {},
        });
        if (response.body) {
          try {
            for await (const event of events(response.body)) {
              if (event.id) last = event.id;
              const data = event.data ? JSON.parse(event.data) : {};
              onevent?.(event.name, data);
              if (event.name === "done") return data.result;
              if (event.name === "cancelled") throw new DOMException("cancelled", "AbortError");
              if (event.name === "failed")
                throw new ApiError(
                  422,
                  data.error?.kind ?? "failed",
                  data.error?.message ?? "the job failed",
                  data.error?.hint,
                );
              tries = 0;
            }
          } catch (error) {
            if (isAbort(error) || error instanceof ApiError) throw error;
          }
        }
        if (tries >= 3) {
          this.mark(false);
          throw new ApiError(0, "offline", "the connection broke while the job ran");
        }
        await new Promise((resolve) => setTimeout(resolve, 300));
      }
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }
}

/**
 * Server-sent events out of a stream of bytes.
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<{name: string, data: string, id: string}>}
 */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let event = { name: "message", data: "", id: "" };
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "") {
          if (event.data !== "" || event.name !== "message") yield event;
          event = { name: "message", data: "", id: event.id };
          continue;
        }
        const colon = line.indexOf(":");
        if (colon === 0) continue;
        const field = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "event") event.name = text;
        else if (field === "data") event.data = event.data === "" ? text : `${event.data}\n${text}`;
        else if (field === "id") event.id = text;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
