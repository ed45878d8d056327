// A lane for each listener, a column for each event: lit in the lane of whoever won it, grey where it was skipped.
//
// Columns come in on the right. While somebody looks at one (pointer or keyboard), or has pressed Pause, none is added, and what came
// meanwhile is not shown later: this is a window, not a record. At most as many columns exist as fit.

import { $, count, make, say } from "./dom.js";

const COLUMN_PX = 24;
const RATE_S = 3;
const OUTCOMES = ["won", "skipped", "failed", "left"];
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const byName = new Intl.Collator("en", { numeric: true }).compare;

export class Lanes {
  // open(key): somebody wants to read an event's story.
  constructor(open) {
    this.open = open;
    this.names = [];
    this.lanes = new Map(); // name -> { item, shown numbers, recent counts, state }
    this.columns = []; // { key, type, outcomes: Map name -> {outcome, why}, button, cells }, oldest first
    this.newest = new Map(); // key -> its newest column
    this.accepted = []; // [at, number accepted, number shown] of the last seconds
    this.paused = false;
    this.looking = false;
    this.unshown = 0; // events that were accepted since the lanes are held
    this.selected = null;
    this.strip = $("strip");
    this.track = $("track");
    new ResizeObserver(() => this.trim()).observe(this.strip);
    this.strip.addEventListener("pointerenter", () => this.look(true));
    this.strip.addEventListener("pointerleave", () => this.look(this.strip.contains(document.activeElement)));
    this.strip.addEventListener("focusin", (event) => this.focused(event));
    this.strip.addEventListener("focusout", (event) => this.look(this.strip.contains(event.relatedTarget)));
    this.strip.addEventListener("keydown", (event) => this.move(event));
    this.track.addEventListener("click", (event) => this.columnOf(event.target, (column) => this.open(column.key)));
    this.track.addEventListener("pointerover", (event) => this.columnOf(event.target, (column) => this.describe(column)));
    $("pause").addEventListener("click", () => this.pause(!this.paused));
  }

  // ------------------------------------------------------------------------------------------------------------ listeners

  // What the broadcaster says of the listeners; those that are missing have fallen silent.
  state(listeners) {
    for (const listener of listeners) {
      const lane = this.lane(listener.name);
      for (const name of OUTCOMES) lane.counts[name] = listener[name] ?? 0; // by its heartbeat, every two seconds
      if (lane.life !== listener.life) lane.said = { ...lane.counts };
      Object.assign(lane, { life: listener.life, silent: false, queue: listener.queue });
    }
    const alive = new Set(listeners.map((listener) => listener.name));
    for (const [name, lane] of this.lanes) lane.silent = !alive.has(name);
    this.renderNames();
  }

  lane(name) {
    if (!this.lanes.has(name)) {
      const counts = Object.fromEntries(OUTCOMES.map((outcome) => [outcome, 0]));
      const parts = { name: make("b", { textContent: name, title: name }), rate: make("span"), numbers: make("span") };
      const item = make("li", {}, make("div", {}, parts.name, " ", parts.rate), parts.numbers);
      this.lanes.set(name, { item, parts, counts, said: { ...counts }, recent: [], silent: false, queue: null, life: "" });
      this.names = [...this.lanes.keys()].sort(byName);
      $("names").replaceChildren(...this.names.map((each) => this.lanes.get(each).item));
      for (const column of this.columns) this.build(column);
    }
    return this.lanes.get(name);
  }

  renderNames() {
    const since = performance.now() - RATE_S * 1000;
    for (const lane of this.lanes.values()) {
      lane.recent = lane.recent.filter(([at]) => at > since);
      const rate = lane.recent.reduce((sum, [, won]) => sum + won, 0) / RATE_S;
      const waiting = lane.queue ? `, ${count(lane.queue)} queued` : "";
      const failed = lane.counts.failed ? `, failed ${count(lane.counts.failed)}` : "";
      say(lane.parts.rate, lane.silent ? "silent" : rate ? `${count(Math.max(1, Math.round(rate)))} won/s` : "");
      say(lane.parts.numbers, `won ${count(lane.counts.won)}, skipped ${count(lane.counts.skipped)}${failed}${waiting}`);
      lane.item.classList.toggle("silent", lane.silent);
    }
  }

  // --------------------------------------------------------------------------------------------------------------- events

  frame({ accepted, events, outcomes, counts }) {
    const now = performance.now();
    for (const [name, counted] of Object.entries(counts)) {
      const lane = this.lane(name);
      lane.recent.push([now, counted.won ?? 0]);
    }
    const shown = this.held ? 0 : events.length;
    this.accepted.push([now, accepted, shown]);
    if (this.held) this.unshown += accepted;
    if (shown) this.add(events);
    for (const [key, listener, outcome, why] of outcomes) this.outcome(key, listener, outcome, why);
    this.renderNames();
  }

  // Events of before this page was opened: who won them is known, and no more.
  past(events) {
    if (this.columns.length) return;
    this.add(events.map(({ key, type }) => ({ key, type })));
    for (const { key, listener } of events) if (this.lanes.has(listener)) this.outcome(key, listener, "won", "");
    for (const column of this.columns) column.button.classList.add("past");
  }

  add(events) {
    const room = this.room();
    const fresh = events.slice(-room).map(({ key, type }) => {
      const column = { key, type, outcomes: new Map(), cells: new Map() };
      column.button = make("button", { type: "button", tabIndex: -1, className: "column" });
      column.button.column = column;
      this.build(column);
      this.newest.set(key, column);
      return column;
    });
    this.columns.push(...fresh);
    this.track.append(...fresh.map((column) => column.button));
    this.trim();
    this.select(this.columns.at(-1)); // nobody is looking: the Tab key leads to the newest
    $("nothing").hidden = true;
    if (!calm.matches && this.columns.length > fresh.length) {
      const from = `translateX(${Math.min(fresh.length, room) * COLUMN_PX}px)`;
      this.track.animate([{ transform: from }, { transform: "none" }], { duration: 240, easing: "ease-out" });
    }
  }

  room() {
    return Math.max(3, Math.floor(this.strip.clientWidth / COLUMN_PX));
  }

  trim() {
    for (const column of this.columns.splice(0, Math.max(0, this.columns.length - this.room()))) {
      column.button.remove();
      if (this.newest.get(column.key) === column) this.newest.delete(column.key);
    }
    if (!this.columns.includes(this.selected)) this.select(this.columns.at(-1) ?? null);
  }

  outcome(key, listener, outcome, why) {
    const column = this.newest.get(key);
    if (!column || !OUTCOMES.includes(outcome)) return;
    this.lane(listener);
    column.outcomes.set(listener, { outcome, why });
    this.paint(column);
  }

  build(column) {
    column.cells = new Map(this.names.map((name) => [name, make("i", { className: "cell" })]));
    column.button.replaceChildren(...column.cells.values());
    this.paint(column);
  }

  paint(column) {
    for (const [name, cell] of column.cells) {
      const className = `cell ${column.outcomes.get(name)?.outcome ?? ""}`;
      if (cell.className !== className) cell.className = className;
    }
    column.button.setAttribute("aria-label", this.words(column));
    if (column === this.described) this.describe(column);
  }

  words(column) {
    const heard = this.names.filter((name) => column.outcomes.has(name));
    const parts = heard.map((name) => {
      const { outcome, why } = column.outcomes.get(name);
      return `${outcome === "left" ? "given back" : outcome} by ${name}${why ? ` (${why})` : ""}`;
    });
    return [column.key, column.type, ...(parts.length ? parts : ["nobody has said anything of it yet"])].filter(Boolean).join(", ");
  }

  // --------------------------------------------------------------------------------------------------------------- looking

  get held() {
    return this.paused || this.looking;
  }

  look(looking) {
    if (!this.held) this.unshown = 0;
    this.looking = looking;
    if (!looking) this.described = null;
    this.tellSampling();
  }

  pause(paused) {
    if (!this.held) this.unshown = 0;
    this.paused = paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    this.tellSampling();
  }

  focused(event) {
    this.look(true);
    this.columnOf(event.target, (column) => {
      this.select(column);
      this.describe(column);
    });
  }

  columnOf(element, then) {
    const column = element.closest?.("button.column")?.column;
    if (column) then(column);
  }

  select(column) {
    if (this.selected) this.selected.button.tabIndex = -1;
    this.selected = column;
    if (column) column.button.tabIndex = 0; // one stop for the Tab key, the arrow keys do the rest
  }

  move(event) {
    const at = this.columns.indexOf(this.selected);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.columns.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    this.columns[Math.min(Math.max(to, 0), this.columns.length - 1)].button.focus();
  }

  describe(column) {
    this.described = column;
    say($("under"), this.words(column));
  }

  // -------------------------------------------------------------------------------------------------------------- in words

  // Every second: which part of what comes in is shown.
  tellSampling() {
    const since = performance.now() - RATE_S * 1000;
    this.accepted = this.accepted.filter(([at]) => at > since);
    const accepted = this.accepted.reduce((sum, [, number]) => sum + number, 0);
    const shown = this.accepted.reduce((sum, [, , number]) => sum + number, 0);
    const rate = accepted / RATE_S;
    say($("tile-rate"), rate >= 1 ? `${count(Math.round(rate))} a second` : "by this broadcaster");
    let text = "Every event is shown.";
    if (this.paused) text = `Paused: ${count(this.unshown)} events since then are counted, not shown.`;
    else if (this.looking) text = `Held while you look at an event: ${count(this.unshown)} since then are counted, not shown.`;
    else if (accepted > shown) text = `A sample is shown: ${count(Math.round(shown / RATE_S))} of ${count(Math.round(rate))} events a second.`;
    say($("sampling"), text);
  }

  // What has changed since the last call, for who does not see it; empty when nothing has.
  summary() {
    const parts = this.names.flatMap((name) => {
      const { counts, said, silent } = this.lanes.get(name);
      const change = OUTCOMES.map((outcome) => [outcome, counts[outcome] - said[outcome]]).filter(([, more]) => more > 0);
      this.lanes.get(name).said = { ...counts };
      const words = change.map(([outcome, more]) => `${outcome} ${count(more)}`);
      return silent ? [`${name} is silent`] : words.length ? [`${name} ${words.join(", ")}`] : [];
    });
    return parts.join("; ");
  }
}
