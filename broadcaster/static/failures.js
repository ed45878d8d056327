// The failures that changed last, and what can be decided about each.

import { ask } from "./api.js";
import { $, count, instant, make, say, shortened } from "./dom.js";

const AGAIN = { name: "retry", label: "Retry" };
const DISCARD = {
  name: "discard",
  label: "Discard",
  title: "Discard this event?",
  text: "It is given up for good. A mark in the ledger keeps later copies of it out.",
};
const ACCEPT = {
  name: "accept-new",
  label: "Accept new",
  title: "Accept the new content?",
  text: "It takes the place of what was processed. Handlers do not run again: what the old content did stands.",
};
const KEEP = {
  name: "keep-old",
  label: "Keep old",
  title: "Keep the old content?",
  text: "What was processed stands. This content is refused whenever it comes again.",
};
const DECISIONS = {
  retrying: [AGAIN, DISCARD],
  dead: [AGAIN, DISCARD],
  stale: [AGAIN, DISCARD],
  malformed: [DISCARD],
  conflict: [ACCEPT, KEEP, AGAIN, DISCARD],
};

export class Failures {
  // open(key): somebody wants to read an event's story.
  constructor(open) {
    this.open = open;
    this.items = new Map(); // key#digest -> { element, changed }
    this.seen = "";
    $("failures-state").addEventListener("change", () => this.load());
  }

  // Look again when the numbers have changed.
  state(counts) {
    const seen = JSON.stringify(counts);
    if (seen !== this.seen && !counts.error) {
      this.seen = seen;
      this.load();
    }
  }

  async load() {
    const state = $("failures-state").value;
    this.asked = (this.asked ?? 0) + 1;
    const mine = this.asked;
    let answer;
    try {
      answer = await ask(`/failures?limit=50${state ? `&state=${state}` : ""}`);
    } catch (error) {
      return say($("decided"), `The failures cannot be listed: ${error.message}.`);
    }
    if (mine === this.asked) this.render(answer, state);
  }

  render({ failures, more }, state) {
    const items = new Map();
    for (const failure of failures) {
      const id = `${failure.key}#${failure.digest}`;
      const changed = `${failure.state} ${failure.updated_at} ${failure.reason}`;
      const known = this.items.get(id);
      items.set(id, known?.changed === changed ? known : { element: this.item(failure), changed });
    }
    const list = $("failures");
    const focused = [...this.items.values()].findIndex(({ element }) => element.contains(document.activeElement));
    const wanted = [...items.values()].map(({ element }) => element);
    if (wanted.length !== list.children.length || wanted.some((element, at) => list.children[at] !== element)) {
      for (const element of [...list.children]) if (!wanted.includes(element)) element.remove();
      wanted.forEach((element, at) => list.children[at] !== element && list.insertBefore(element, list.children[at] ?? null));
    }
    this.items = items;
    if (focused >= 0 && document.activeElement === document.body) {
      (wanted[Math.min(focused, wanted.length - 1)]?.querySelector("button") ?? $("failures-state")).focus();
    }
    $("failures-none").hidden = failures.length > 0;
    say($("failures-none"), state ? `Nothing is ${state}.` : "Nothing has failed.");
    $("failures-more").hidden = !more;
  }

  item(failure) {
    const key = make("button", { type: "button", className: "link key", textContent: failure.key, title: "Look this event up" });
    key.addEventListener("click", () => this.open(failure.key));
    const buttons = (DECISIONS[failure.state] ?? []).map((decision) => {
      const button = make("button", { type: "button", textContent: decision.label });
      button.setAttribute("aria-label", `${decision.label}: ${failure.key}`);
      button.addEventListener("click", () => this.decide(decision, failure, button));
      return button;
    });
    const attempts = failure.attempts ? `${count(failure.attempts)} ${failure.attempts === 1 ? "attempt" : "attempts"}` : "";
    const due = failure.state === "retrying" && failure.due_at ? `again at ${instant(failure.due_at).slice(11, 19)}` : "";
    const facts = [failure.type, attempts, due, failure.listener, instant(failure.updated_at)].filter(Boolean).join(" · ");
    return make(
      "li",
      {},
      make("span", { className: `badge ${failure.state}`, textContent: failure.state }),
      key,
      make("p", { className: "reason", textContent: shortened(String(failure.reason ?? ""), 300) }),
      make("p", { className: "facts", textContent: facts }),
      make("div", { className: "row" }, ...buttons),
    );
  }

  async decide(decision, failure, button) {
    if (decision.title && !(await confirmed(decision, failure.key))) return button.focus();
    button.disabled = true;
    try {
      const body = { decision: decision.name, key: failure.key, digest: failure.digest };
      const { done } = await ask("/failures/decisions", { method: "POST", body });
      $("decided").textContent = `${failure.key}: ${done}.`;
    } catch (error) {
      $("decided").textContent = `Not done: ${error.message}.`;
    }
    button.disabled = false;
    button.focus();
    await this.load();
  }
}

// Ask back; resolves to whether to go on.
function confirmed(decision, key) {
  const dialog = $("confirm");
  $("confirm-title").textContent = decision.title;
  $("confirm-text").textContent = decision.text;
  $("confirm-key").textContent = key;
  $("confirm-yes").textContent = decision.label;
  dialog.showModal();
  $("confirm-no").focus();
  return new Promise((resolve) => {
    const answer = (yes) => {
      resolve(yes);
      if (dialog.open) dialog.close();
    };
    $("confirm-no").onclick = () => answer(false);
    $("confirm-yes").onclick = () => answer(true);
    dialog.onclose = () => dialog.open || answer(false); // by the Escape key; told late, perhaps when the next question is asked already
  });
}
