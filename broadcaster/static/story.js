// Looking an event up, and telling its story in the order of what happened.

import { ask } from "./api.js";
import { $, instant, make, shortened } from "./dom.js";

const SHOWN = 20_000;

// The key in a task id such as <key>+249/listener-1; a key itself holds neither "/" nor "+".
export function keyIn(text) {
  const [head, ...tail] = text.trim().split("/");
  if (!tail.length) return text.trim();
  try {
    return decodeURIComponent(head.split("+")[0]);
  } catch {
    return text.trim();
  }
}

export class Story {
  constructor() {
    $("lookup").addEventListener("submit", (event) => {
      event.preventDefault();
      this.show($("lookup-key").value);
    });
  }

  async show(text) {
    const key = keyIn(text);
    if (!key) return;
    $("lookup-key").value = key;
    this.asked = (this.asked ?? 0) + 1;
    const mine = this.asked;
    let parts;
    try {
      parts = told(await ask(`/events/${encodeURIComponent(key)}`));
    } catch (error) {
      const unknown = error.status === 404;
      const text = unknown ? "Nothing is known of it: it was never accepted here, or its retention is over." : `It cannot be looked up: ${error.message}.`;
      parts = [make("h3", { className: "key", textContent: key }), make("p", { textContent: text })];
    }
    if (mine !== this.asked) return;
    $("story").replaceChildren(...parts);
    $("story").focus({ preventScroll: true });
    $("lookup-title").scrollIntoView({ block: "start" });
  }
}

function told(story) {
  const event = story.event ?? story.failures.at(-1) ?? story.inbox[0] ?? {};
  const parts = [
    make("h3", {}, make("span", { className: `badge ${story.state}`, textContent: story.state }), make("span", { className: "key", textContent: story.key })),
    make("ol", { className: "steps" }, ...story.steps.map(step)),
    facts(event),
  ];
  if (event.data !== undefined) parts.push(block("data", JSON.stringify(event.data, null, 2)));
  if (event.data_base64 !== undefined) parts.push(block("data, in base64", event.data_base64));
  if (story.event?.result !== undefined) parts.push(block("what its handler returned", JSON.stringify(story.event.result, null, 2)));
  return parts;
}

function step({ at, text, more }) {
  const parts = [make("time", { textContent: at ? instant(at) : "", dateTime: at ?? "" }), make("span", { textContent: text })];
  return make("li", {}, ...parts, ...(more ? [block("traceback", more)] : []));
}

function facts(event) {
  const rows = ["type", "source", "id", "time"].filter((name) => event[name] != null);
  return make("dl", { className: "facts" }, ...rows.map((name) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: String(event[name]) }))));
}

function block(title, text) {
  const pre = make("pre", { textContent: shortened(text, SHOWN), tabIndex: 0 });
  pre.setAttribute("aria-label", title);
  return make("div", {}, make("h4", { textContent: title }), pre);
}
