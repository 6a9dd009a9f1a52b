// Counts the events that the page has asked the server for and not shown the answers of. Listens at fetch; changes nothing,
// unless a test sets `window.late`: each message of the server waits for the promise that late(message) returns.
(() => {
  const fetched = window.fetch;
  const asked = new Set(), answered = new Set();
  let asking = 0, calm = 0;

  // The page handles an answer in a timer of its own; two timers later it has.
  const note = (set, id) => setTimeout(() => setTimeout(() => set.add(id)));

  const join = async (...request) => {
    asking++;
    try {
      const response = await fetched(...request);
      asked.add((await response.clone().json()).event_id);
      return response;
    } finally {
      asking--;
    }
  };

  const listen = async (...request) => {
    const response = await fetched(...request), decoder = new TextDecoder(), encoder = new TextEncoder();
    let text = "";
    const pass = async (chunk, out) => {
      const parts = (text + decoder.decode(chunk, { stream: true })).split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const message = JSON.parse(part.slice(5));
        await window.late?.(message);
        out.enqueue(encoder.encode(`${part}\n\n`));
        if (message.msg === "process_completed") note(answered, message.event_id);
      }
    };
    return new Response(response.body.pipeThrough(new TransformStream({ transform: pass })), response);
  };

  window.fetch = (...request) => {
    const url = String(request[0].url ?? request[0]);
    return (url.includes("/queue/join") ? join : url.includes("/queue/data") ? listen : fetched)(...request);
  };

  // True once nothing has been unanswered for some frames in a row: an answer may make the page ask again.
  window.settled = () => {
    calm = asking || [...asked].some((id) => !answered.has(id)) ? 0 : calm + 1;
    return calm > 4;
  };
})();
