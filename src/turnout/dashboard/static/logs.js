// The ends of the logs: of the active daemon, of a candidate or the one that is kept warm, of the router.

import { byId, keyed, make, say } from "./dom.js";

let shown = [];

export function showLogs(logs) {
  shown = logs;
  const choice = byId("log-choice");
  keyed(choice, logs, (log) => `${log.title} ${log.boot_id}`.trim(), (log) => {
    const option = make("option");
    option.value = log.title;
    return option;
  }, (option, log) => say(option, log.version ? `${log.title}, ${log.version}` : log.title));
  print();
}

function print() {
  const log = shown.find((one) => one.title === byId("log-choice").value) ?? shown[0];
  const pre = byId("log");
  const atEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 8;
  const text = log?.lines.join("\n") || "Nothing has been printed yet.";
  if (pre.textContent === text) return;
  pre.textContent = text;
  if (atEnd) pre.scrollTop = pre.scrollHeight;
}

export function wireLogs() {
  byId("log-choice").addEventListener("change", () => {
    print();
    byId("log").scrollTop = byId("log").scrollHeight;
  });
}
