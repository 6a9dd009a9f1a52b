// Keys, and names for the panes. Knows element ids; sends nothing anywhere.

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
  for (const radio of document.querySelectorAll("#picker input[type=radio]")) {
    if (radio.name !== "received") radio.name = "received";
  }
};
new MutationObserver(mend).observe(document, { childList: true, subtree: true });
