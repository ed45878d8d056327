// What all parts of the page share. Text out of events reaches the page through textContent and attributes alone, never as markup.

export const $ = (id) => document.getElementById(id);

// An element with properties, and children that are elements or text.
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const numbers = new Intl.NumberFormat("en");
export const count = (value) => (typeof value === "number" ? numbers.format(value) : "–");

export const shortened = (text, length) => (text.length > length ? `${text.slice(0, length)}…` : text);

export function instant(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return "";
  const pad = (number, width = 2) => String(number).padStart(width, "0");
  const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
  return `${day} ${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}.${pad(at.getMilliseconds(), 3)}`;
}

// Set the text only where it changes, so that nobody is told of what stays the same.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
