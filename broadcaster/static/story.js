// Looking an event up, and telling its story in the order of what happened.

import { ask } from "./api.js";
import { $, count, instant, make, shortened } from "./dom.js";

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
    make("ol", { className: "steps" }, ...steps(story).map(step)),
    facts(event),
  ];
  if (event.data !== undefined) parts.push(block("data", JSON.stringify(event.data, null, 2)));
  if (event.data_base64 !== undefined) parts.push(block("data, in base64", event.data_base64));
  if (story.event?.result !== undefined) parts.push(block("what its handler returned", JSON.stringify(story.event.result, null, 2)));
  for (const failure of story.event ? [] : story.failures) {
    if (failure.error?.traceback) parts.push(block("traceback", failure.error.traceback));
  }
  return parts;
}

// [instant or null, text] in the order of what happened.
function steps({ event, failures, inbox, claim }) {
  const found = [];
  for (const batch of inbox) {
    found.push([batch.accepted_at, `accepted (${batch.door}) in batch ${batch.batch}`]);
    const times = batch.forwards > 1 ? `, ${count(batch.forwards)} times in all` : "";
    found.push(batch.forwarded_at ? [batch.forwarded_at, `forwarded to the listeners${times}`] : [null, "not yet forwarded"]);
  }
  const first = event ?? failures[0];
  if (!inbox.length && first) found.push([first.accepted_at, `accepted in batch ${first.batch}, digest ${first.digest}`]);
  for (const failure of failures) {
    if (failure.state !== "conflict") found.push([failure.first_failed_at, `first failed, digest ${failure.digest}`]);
    const attempts = failure.attempts ? ` after ${count(failure.attempts)} ${failure.attempts === 1 ? "attempt" : "attempts"}` : "";
    found.push([failure.updated_at, `${failure.state}${attempts}${failure.listener ? ` (${failure.listener})` : ""}: ${failure.reason ?? ""}`]);
    if (failure.other_digest) found.push([null, `the key is held with digest ${failure.other_digest}; this content has ${failure.digest}`]);
    if (failure.due_at) found.push([failure.due_at, "due to be tried again"]);
  }
  if (claim) found.push([null, claimed(claim)]);
  if (event) {
    const attempt = event.attempt > 1 ? `, in attempt ${event.attempt}` : "";
    const what = event.discarded ? "discarded" : "processed";
    found.push([event.processed_at, `${what} by ${event.listener}${attempt}, token ${event.token}`]);
    for (const name of ["superseded", "rejected"]) {
      for (const digest of event[name] ?? []) found.push([null, `other content ${name}: digest ${digest}`]);
    }
  }
  return inOrder(found);
}

// By time; a step without an instant stays behind the one that it belongs to.
function inOrder(found) {
  let last = "";
  const keyed = found.map((step) => ({ step, at: (last = step[0] ?? last) }));
  return keyed.sort((a, b) => Date.parse(a.at) - Date.parse(b.at) || 0).map(({ step }) => step);
}

function claimed(claim) {
  if (claim.error) return `who has it now is not known: ${claim.error}`;
  if (claim.state === "done") return `Redis remembers it as done by ${claim.owner}`;
  const before = claim.previous_owner ? `, taken over from ${claim.previous_owner}` : "";
  return `claimed by ${claim.owner}${before}, token ${claim.token}; its lease ${claim.live ? "runs" : "has run out"}`;
}

function step([at, text]) {
  return make("li", {}, make("time", { textContent: at ? instant(at) : "", dateTime: at ?? "" }), make("span", { textContent: text }));
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
