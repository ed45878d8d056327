// Requests to the broadcaster, with the token where one is set. The token is kept by this tab alone.

import { $ } from "./dom.js";

const KEPT = "dedup-token";
export const token = () => sessionStorage.getItem(KEPT) ?? "";

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

// The JSON that a route answers. Throws Refused with the server's sentence, or with one of ours when it does not answer.
export async function ask(path, { method = "GET", body } = {}) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  } catch {
    throw new Refused(0, "the broadcaster does not answer");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer.detail ?? `the broadcaster answered ${response.status}`);
  return answer;
}

// Wait until the broadcaster lets us in; ask for the token as long as it is missing or wrong.
export async function enter() {
  for (;;) {
    try {
      return await ask("/failures?limit=1");
    } catch (error) {
      if (error.status !== 401) return null;
      await askForToken(token() !== "");
    }
  }
}

function askForToken(wrong) {
  const dialog = $("ask");
  $("ask-wrong").textContent = wrong ? "That was not the token." : "";
  $("ask-token").value = "";
  if (!dialog.open) dialog.showModal();
  dialog.oncancel = (event) => event.preventDefault();
  return new Promise((resolve) => {
    $("ask-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEPT, $("ask-token").value);
      dialog.close();
      resolve();
    };
  });
}
