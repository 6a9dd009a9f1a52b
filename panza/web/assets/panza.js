// Whose words stand in a field, answers that Gradio would lose, keys, one shortcut, and names for the panes.
// Knows element ids and Gradio's stream; sends nothing of its own.

// A question to the server bears a number. Its answer fills a field only if no newer question was asked about the field
// and the user has not written there since. Until it comes, the field shows what is out of date: no event tells it.
// The first questions stand before anyone can write: what was on the desk (0), what are the user's addresses (-1)?
const LETTER = ["instruction", "to", "subject", "text"];
const LEAVE = { __type__: "update" }, LOCK = { ...LEAVE, interactive: false };
const questions = new Map([...LETTER.map((id) => [id, 0]), ["me", -1]]); // field -> its newest question
const answered = new Set();
let asked = 0, lastWords = [];

const inside = (id) => `#${id} :is(textarea, input)`;
const foreign = (id) => // the words in the field are not the user's
  (questions.has(id) && !answered.has(questions.get(id))) || document.querySelector(inside(id))?.disabled;

window.panza = {
  ask(...ids) {
    asked++;
    for (const id of ids) questions.set(id, asked);
    return asked;
  },
  tell: (words, ids = LETTER) => ids.map((id, i) => (foreign(id) ? null : words[i])),
  land({ question, words }, ids) {
    answered.add(question);
    return ids.map((id) => (id in words && questions.get(id) === question ? words[id] : LEAVE));
  },
  lock(words, n) { // a draft begins: what the user said last, and n parts that wait for the answer
    lastWords = panza.tell(words);
    return Array(n).fill(LOCK);
  },
  locked: () => lastWords,
};

document.addEventListener("input", (event) => {
  for (const id of questions.keys()) if (event.target.matches(inside(id))) questions.delete(id);
}, true);

// The server closes the stream of answers as soon as none is due. An event sent while the page has not heard of that
// gets no stream, and its answer would wait for whatever the user does next: so, with answers due, the page reads on.
{
  const fetched = window.fetch, due = new Set(), early = new Set(); // events; answers that overtook "your event is in"
  const told = (id) => due.delete(id) || early.add(id);

  const send = async (...request) => {
    const response = await fetched(...request);
    const { event_id } = response.ok ? await response.clone().json() : {};
    if (event_id && !early.delete(event_id)) due.add(event_id);
    return response;
  };

  const listen = async (...request) => {
    const open = async () => {
      const response = await fetched(...request);
      return [response, response.body.pipeThrough(new TextDecoderStream()).getReader()];
    };
    let [response, source] = await open(), text = "";
    const encoder = new TextEncoder();
    const pass = async (out, part) => {
      const message = JSON.parse(part.slice(part.indexOf(":") + 1));
      if (message.msg === "process_completed") told(message.event_id);
      if (message.msg === "close_stream" && due.size) [, source] = await open();
      else out.enqueue(encoder.encode(`${part}\n\n`));
    };
    const start = async (out) => {
      for (let read = await source.read(); !read.done; read = await source.read()) {
        const parts = (text + read.value).split("\n\n");
        text = parts.pop();
        for (const part of parts) await pass(out, part);
      }
      out.close();
    };
    return new Response(new ReadableStream({ start, cancel: (reason) => source.cancel(reason) }), response);
  };

  window.fetch = (...request) => {
    const url = String(request[0].url ?? request[0]);
    return (url.includes("/queue/join") ? send : url.includes("/queue/data") ? listen : fetched)(...request);
  };
}

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
