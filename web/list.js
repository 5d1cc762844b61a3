// A long list of which only what is in sight is in the document. Rows have one height; arrow keys walk.

import { h } from "./dom.js";

/** @template T */
export class VirtualList {
  /**
   * @param {{label: string, rowHeight: number, row: (item: T, index: number) => HTMLElement, onpick?: (item: T, event: Event) => void,
   *   onhover?: (item: T|null) => void, onend?: () => void}} options
   *   `onend`: the end is near, more may be fetched
   */
  constructor(options) {
    this.options = options;
    /** @type {T[]} */
    this.items = [];
    this.active = -1;
    this.name = `list${++lists}`;
    this.space = h("div", { class: "space", role: "presentation" });
    this.element = h("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": options.label }, this.space);
    this.element.addEventListener("scroll", () => this.draw());
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("click", (event) => {
      const index = this.indexOf(event);
      if (index >= 0) {
        this.active = index;
        options.onpick?.(this.items[index], event);
      }
    });
    this.element.addEventListener("pointerover", (event) => options.onhover?.(this.items[this.indexOf(event)] ?? null));
    this.element.addEventListener("pointerleave", () => options.onhover?.(null));
    this.element.addEventListener("blur", () => options.onhover?.(null));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** @param {Event} event */
  indexOf(event) {
    const row = /** @type {Element} */ (event.target).closest("[data-index]");
    return row ? Number(row.getAttribute("data-index")) : -1;
  }

  /** @param {T[]} items @param {boolean} [keepPlace] */
  set(items, keepPlace = false) {
    this.items = items;
    if (!keepPlace) {
      this.element.scrollTop = 0;
      this.active = -1;
    }
    this.space.style.setProperty("height", `${items.length * this.options.rowHeight}px`);
    this.draw();
  }

  draw() {
    const { rowHeight, row, onend } = this.options;
    const top = this.element.scrollTop;
    const height = this.element.clientHeight || 300;
    const first = Math.max(0, Math.floor(top / rowHeight) - 4);
    const last = Math.min(this.items.length, Math.ceil((top + height) / rowHeight) + 4);
    const rows = [];
    for (let i = first; i < last; i++) {
      const element = row(this.items[i], i);
      element.classList.add("row");
      element.setAttribute("role", "option");
      element.setAttribute("aria-selected", String(i === this.active));
      element.setAttribute("aria-setsize", String(this.items.length));
      element.setAttribute("aria-posinset", String(i + 1));
      element.id = `${this.name}-${i}`;
      element.dataset.index = String(i);
      element.style.setProperty("top", `${i * rowHeight}px`);
      element.style.setProperty("height", `${rowHeight}px`);
      rows.push(element);
    }
    this.space.replaceChildren(...rows);
    if (this.active >= first && this.active < last)
      this.element.setAttribute("aria-activedescendant", `${this.name}-${this.active}`);
    else this.element.removeAttribute("aria-activedescendant");
    if (last >= this.items.length && this.items.length > 0) onend?.();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.options.rowHeight) - 1);
    const by = /** @type {Record<string, number>} */ ({
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -1e9,
      End: 1e9,
    })[event.key];
    if (by !== undefined && this.items.length > 0) {
      this.active = Math.max(0, Math.min(this.items.length - 1, this.active + by));
      const top = this.active * this.options.rowHeight;
      const { scrollTop, clientHeight } = this.element;
      if (top < scrollTop) this.element.scrollTop = top;
      if (top + this.options.rowHeight > scrollTop + clientHeight)
        this.element.scrollTop = top + this.options.rowHeight - clientHeight;
      this.draw();
      this.options.onhover?.(this.items[this.active]);
      event.preventDefault();
      event.stopPropagation();
    } else if ((event.key === "Enter" || event.key === " ") && this.active >= 0) {
      this.options.onpick?.(this.items[this.active], event);
      event.preventDefault();
      event.stopPropagation();
    }
  }
}
let lists = 0;
