// make("label", { className: "wide" }, "text", child, ...): an element, never from HTML text.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const notice = document.getElementById("notice");

/** One line at the top of the page; none: nothing to say. */
export function tell(text = "", wrong = false) {
  notice.textContent = text;
  notice.hidden = !text;
  notice.classList.toggle("wrong", wrong);
}
