// Keys, one shortcut, and names for the panes. Knows element ids; sends nothing anywhere.

const press = (id) => {
  const button = document.getElementById(id);
  if (!button || button.disabled || !button.offsetParent) return false;
  button.click();
  return true;
};

document.addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey;
  const done =
    (command && event.key === "Enter" && press("draft")) ||
    (((command && event.key === ".") || event.key === "Escape") && press("stop"));
  if (!done) return;
  event.preventDefault();
  event.stopPropagation();
}, true);

// The empty pane leads to the tab where mail comes in.
document.addEventListener("click", (event) => {
  if (!event.target.closest?.(".go")) return;
  [...document.querySelectorAll("#tabs [role=tab]")].at(-1)?.click();
  atFirst("#paths textarea");
});

// Puts the cursor into a field as soon as it shows, but never takes it out of another that the user has gone to meanwhile.
const atFirst = (field) => {
  if (document.activeElement?.matches("input, textarea")) return;
  const there = document.querySelector(field);
  if (there?.offsetParent) there.focus();
  else requestAnimationFrame(() => atFirst(field));
};

// Gradio names no column for screen readers, and gives each radio button a group of its own, so that the arrow keys
// would not move between mails.
const panes = { side: "Mailbox and received mail", reading: "The mail you answer", writing: "Your draft" };
const mend = () => {
  for (const [id, name] of Object.entries(panes)) {
    const pane = document.getElementById(id);
    if (!pane || pane.hasAttribute("role")) continue;
    pane.setAttribute("role", "region");
    pane.setAttribute("aria-label", name);
  }
  const text = document.querySelector("#text textarea"); // its label holds the copy button too
  if (text && !text.hasAttribute("aria-label")) text.setAttribute("aria-label", "Draft");
  for (const radio of document.querySelectorAll("#picker input[type=radio]")) {
    if (radio.name !== "received") radio.name = "received";
  }
};
new MutationObserver(mend).observe(document, { childList: true, subtree: true, attributeFilter: ["name"] });
mend();
