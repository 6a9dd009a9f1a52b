// Counts the events that the page has asked the server for and not shown the answers of. Listens at fetch; changes nothing.
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
    const response = await fetched(...request), decoder = new TextDecoder();
    let text = "";
    const pass = (chunk, out) => {
      out.enqueue(chunk);
      const lines = (text + decoder.decode(chunk, { stream: true })).split("\n");
      text = lines.pop();
      for (const line of lines.filter((line) => line.startsWith("data:"))) {
        const message = JSON.parse(line.slice(5));
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
