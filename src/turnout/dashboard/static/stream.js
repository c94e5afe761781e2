// Server-sent events over fetch: EventSource cannot carry the token. It heals by itself, and says when it is broken.

const SILENT_MS = 6000; // the server sends something every two seconds
const AGAIN_MS = [500, 1000, 2000, 4000];

/**
 * Listen for ever.
 * @param {string} token
 * @param {(part: string, data: any) => void} heard  each event, as it comes
 * @param {(state: "live" | "lost" | "denied" | "full") => void} changed  how the line is
 */
export async function listen(token, heard, changed) {
  for (let failures = 0; ; ) {
    const stop = new AbortController();
    let watch = setTimeout(() => stop.abort(), SILENT_MS);
    try {
      const answer = await fetch("/events", {
        headers: { Authorization: `Bearer ${token}` },
        cache: "no-store",
        signal: stop.signal,
      });
      if (answer.status === 401) {
        changed("denied");
        return;
      }
      if (!answer.ok) {
        changed("full");
      } else {
        const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let rest = ""; ; ) {
          const { done, value } = await reader.read();
          if (done) break;
          clearTimeout(watch);
          watch = setTimeout(() => stop.abort(), SILENT_MS);
          failures = 0;
          changed("live");
          const events = (rest + value).split("\n\n");
          rest = events.pop();
          for (const event of events) tell(event, heard);
        }
        changed("lost");
      }
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof DOMException)) throw error; // a bug is no broken line
      changed("lost");
    } finally {
      clearTimeout(watch);
    }
    const wait = AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)];
    failures += 1;
    await new Promise((done) => setTimeout(done, wait));
  }
}

function tell(event, heard) {
  let name = "";
  let data = "";
  for (const line of event.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data = line.slice(6);
  }
  if (name) heard(name, JSON.parse(data));
}
