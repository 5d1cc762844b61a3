// Elements from data. Text goes in as text nodes and nowhere else: no string of ours or anybody's is ever parsed as HTML.

/** @typedef {Node|string|number|null|undefined|false} Child */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {Element} element @param {Record<string, any>} props
 */
function apply(element, props) {
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.setAttribute("class", value);
    else if (key === "style")
      for (const [name, v] of Object.entries(value)) /** @type {HTMLElement} */ (element).style.setProperty(name, String(v));
    else if (key === "value" || key === "checked" || key === "disabled" || key === "selected" || key === "indeterminate")
      /** @type {any} */ (element)[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
}

/**
 * An HTML element.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {Record<string, any>|null} [props] @param {...(Child|Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  append(element, children);
  // A select's value needs its options.
  if (props) apply(element, props);
  return element;
}

/**
 * An SVG element.
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag @param {Record<string, any>|null} [props] @param {...(Child|Child[])} children
 * @returns {SVGElementTagNameMap[K]}
 */
export function s(tag, props, ...children) {
  const element = /** @type {SVGElementTagNameMap[K]} */ (document.createElementNS(SVG, tag));
  if (props) apply(element, props);
  append(element, children);
  return element;
}

/** @param {Element} parent @param {(Child|Child[])[]} children */
function append(parent, children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
}

/** Replaces what is in `parent`. @param {Element} parent @param {...(Child|Child[])} children */
export function fill(parent, ...children) {
  parent.replaceChildren();
  append(parent, children);
}

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element #${id}`);
  return element;
}

/**
 * A button with words. @param {string} text @param {() => void} onclick @param {Record<string, any>} [props]
 */
export const button = (text, onclick, props = {}) => h("button", { type: "button", ...props, onclick }, text);

let toastTimer = 0;

/**
 * One sentence at the lower edge, read out by screen readers; it can offer one action.
 * @param {string} text @param {{kind?: "info"|"error", action?: [string, () => void]}} [options]
 */
export function toast(text, { kind = "info", action } = {}) {
  const box = byId("toast");
  clearTimeout(toastTimer);
  box.dataset.kind = kind;
  fill(
    box,
    h("span", null, text),
    action &&
      button(action[0], () => {
        hide();
        action[1]();
      }),
    button("×", () => hide(), { "aria-label": "Close the message", class: "plain" }),
  );
  box.hidden = false;
  const hide = () => {
    box.hidden = true;
  };
  if (kind === "info") toastTimer = window.setTimeout(hide, action ? 12000 : 6000);
}

/**
 * A modal dialog: focus goes in and comes back, Escape closes.
 * @param {string} title @param {(Child|Child[])} body @param {Child[]} [footer] @param {string} [name] class
 */
export function dialog(title, body, footer = [], name = "") {
  const close = button("×", () => box.close(), { class: "plain", "aria-label": "Close" });
  const heading = h("h2", { id: `dialog-${++dialogs}` }, title);
  const box = h(
    "dialog",
    { class: name, "aria-labelledby": heading.id },
    h("header", null, heading, close),
    h("div", { class: "body" }, body),
    footer.length > 0 && h("footer", null, footer),
  );
  box.addEventListener("close", () => box.remove());
  // At once: the browser's own way is a moment later, and a key pressed meanwhile would be lost.
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    box.close();
  });
  box.addEventListener("pointerdown", (event) => {
    if (event.target === box) box.close();
  });
  document.body.append(box);
  box.showModal();
  // Not the cross: what a person most likely wants.
  /** @type {HTMLElement|null} */ (box.querySelector("footer .primary:not(:disabled)"))?.focus();
  return box;
}
let dialogs = 0;

/**
 * Asks for one line of text; null if it was given up.
 * @param {string} title @param {string} value @param {string} [label]
 * @returns {Promise<string|null>}
 */
export function ask(title, value, label = "Name") {
  return new Promise((resolve) => {
    const input = h("input", {
      type: "text",
      value,
      maxlength: "200",
      "aria-label": label,
      autocomplete: "off",
      spellcheck: "false",
    });
    const form = h("form", { class: "ask" }, input);
    let answer = /** @type {string|null} */ (null);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer = input.value;
      box.close();
    });
    const box = dialog(
      title,
      form,
      [button("Cancel", () => box.close()), button("OK", () => form.requestSubmit(), { class: "primary" })],
      "small",
    );
    box.addEventListener("close", () => resolve(answer));
    input.focus();
    input.select();
  });
}

/** @param {string} text @param {string} what */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${what} copied.`);
  } catch {
    const area = h("textarea", { readonly: true, rows: "6", "aria-label": what }, text);
    dialog(`Copy ${what.toLowerCase()}`, area);
    area.select();
  }
}

/** Hands a file to the browser. @param {string} name @param {Blob} blob */
export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * Runs `work` once after `ms` of quiet. @template {any[]} A @param {number} ms @param {(...args: A) => void} work
 */
export function debounce(ms, work) {
  let timer = 0;
  return (/** @type {A} */ ...args) => {
    clearTimeout(timer);
    timer = window.setTimeout(() => work(...args), ms);
  };
}

/** Once a frame at most. @param {() => void} work */
export function onFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}
