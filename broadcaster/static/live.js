// The live page: lets itself in, listens to "/watch", and hands what it hears to the parts.

import { ask, enter, token } from "./api.js";
import { $, count, make, say } from "./dom.js";
import { Failures } from "./failures.js";
import { Lanes } from "./lanes.js";
import { Socket } from "./socket.js";
import { Story, keyIn } from "./story.js";

const SUMMARY_MS = 10_000;

const story = new Story();
const open = (key) => {
  history.replaceState(null, "", `#key=${encodeURIComponent(key)}`);
  story.show(key);
};
const lanes = new Lanes(open);
const failures = new Failures(open);

function connection(state, text) {
  $("connection").dataset.state = state;
  say($("connection"), text);
}

function showState(state) {
  say($("tile-accepted"), count(state.accepted.events));
  say($("tile-ledger"), count(state.ledger.events));
  say($("tile-inbox"), count(state.inbox.batches));
  const age = state.inbox.oldest_age_s;
  say($("tile-age"), state.inbox.batches === 1 ? `batch, for ${age ?? 0} s` : age ? `batches, ${age} s the oldest` : "batches");
  const states = Object.entries(state.failures).filter(([name]) => name !== "error");
  say($("tile-failures"), state.failures.error ? "–" : count(states.reduce((sum, [, number]) => sum + number, 0)));
  say($("tile-states"), state.failures.error ? "" : states.map(([name, number]) => `${count(number)} ${name}`).join(", "));
  showProblems(state);
  lanes.state(state.listeners);
  failures.state(state.failures);
}

function showProblems({ inbox, ledger, redis, outcomes, listeners }) {
  const found = [];
  if (inbox.error ?? ledger.error) found.push(`MongoDB: ${inbox.error ?? ledger.error}`);
  if (!redis.ok) found.push(`Redis: ${redis.error}`);
  else if (!outcomes.ok) found.push(`What listeners do is not heard: ${outcomes.error}`);
  if (redis.ok && !listeners.length) found.push("No listener is alive: start one with celery -A app worker -n listener-1@%h");
  if (found.join() !== showProblems.shown) {
    showProblems.shown = found.join();
    $("problems").replaceChildren(...found.map((text) => make("p", { className: "problem", textContent: text })));
  }
}

const hear = {
  frame: (frame) => lanes.frame(frame),
  state: showState,
};

const listen = () =>
  new Socket("/watch", { token: token() }, {
    connected: () => connection("live", "live"),
    lost: () => connection("lost", "no connection, trying again"),
    refused: () => setTimeout(start, 1_000), // the token has changed
    event: (name, argument) => hear[name]?.(argument),
  }).open();

async function start() {
  await enter();
  listen();
  failures.load();
  showPast();
  const asked = new URLSearchParams(location.hash.slice(1)).get("key");
  if (asked) story.show(asked);
}

async function showPast() {
  try {
    const { events } = await ask(`/events?brief=true&limit=${lanes.room()}`);
    for (const { listener } of events) if (listener !== "operator") lanes.lane(listener);
    lanes.past(events.reverse());
  } catch {
    // the lanes begin empty
  }
}

addEventListener("hashchange", () => {
  const asked = new URLSearchParams(location.hash.slice(1)).get("key");
  if (asked) story.show(keyIn(asked));
});
setInterval(() => lanes.tellSampling(), 1_000);
setInterval(() => {
  const summary = lanes.summary();
  if (summary) say($("summary"), `In the last ten seconds: ${summary}.`);
}, SUMMARY_MS);
start();
