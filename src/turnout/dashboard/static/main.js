// What came last is kept, and shown whenever something comes or a second has gone by.

import { showButtons, wireConfirm } from "./confirm.js";
import { byId, keyed, make, mark, say, show } from "./dom.js";
import { moment } from "./figures.js";
import { showLogs, wireLogs } from "./logs.js";
import { showAction, showRollout } from "./rollout.js";
import { listen } from "./stream.js";
import { showTimeline } from "./timeline.js";
import { findToken } from "./token.js";
import { announce, gravest, judge, showVerdict, wireCopy } from "./verdict.js";
import { showYard, wireYard } from "./yard.js";

const parts = { look: null, timeline: {}, logs: {}, actions: {} };
let heardAt = 0; // of the page's own clock, when the last look came
let link = "connecting";
let lostAt = 0;
let chosen = "";

const services = () => parts.look?.status?.services ?? [];
const current = () => services().find((service) => service.name === chosen) ?? services()[0];
/** The server's clock: what it says of times is told by it, wherever the page is looked at. */
const now = () => (parts.look ? parts.look.ts + (performance.now() - heardAt) / 1000 : Date.now() / 1000);
const frozen = () => (link === "live" ? now() : parts.look.ts);

function heard(part, data) {
  parts[part] = data;
  if (part === "look") heardAt = performance.now();
  render();
}

function changed(state) {
  if (state === link) return;
  if (link === "live" || link === "connecting") lostAt = now();
  link = state;
  mark(document.body, "link", state);
  const words = { live: "live", lost: "no answer", denied: "not let in", full: "too many pages" };
  say(byId("link-text"), words[state] ?? "connecting");
  if (state !== "live") say(byId("announcer"), words[state]);
  render();
}

function notice(what, why, mend) {
  show(byId("notice"), Boolean(what));
  say(byId("notice-what"), what);
  say(byId("notice-why"), why);
  say(byId("notice-mend"), mend);
}

function showNotice() {
  if (link === "denied") {
    notice("This page needs the link that turnout dashboard printed.", "Each start has a new one.", "turnout dashboard");
  } else if (link === "full") {
    notice("Too many pages are open.", "Close one; this one tries again.", "");
  } else if (link === "lost") {
    const seen = parts.look ? `What you see is of ${moment(parts.look.ts, now())}.` : "";
    notice(`The dashboard does not answer since ${moment(lostAt, now())}.`, `${seen} Trying again.`, "turnout dashboard");
  } else if (parts.look?.fault) {
    notice(parts.look.fault.message, "", parts.look.fault.hint ?? "");
  } else if (parts.look && !services().length) {
    notice("No service has been here yet.", "", "turnout up -- COMMAND --port {port}");
  } else {
    notice("", "", "");
  }
}

function showTabs(verdicts) {
  const nav = byId("services");
  show(nav, services().length > 1);
  keyed(nav, services(), (service) => service.name, (service) => {
    const tab = make("button", "tab");
    tab.type = "button";
    tab.append(make("span", "lamp"), make("span", "name"));
    tab.addEventListener("click", () => {
      chosen = service.name;
      render();
    });
    return tab;
  }, (tab, service) => {
    say(tab.querySelector(".name"), service.name);
    mark(tab, "tone", verdicts.get(service.name).tone);
    tab.setAttribute("aria-current", String(service.name === current().name));
    tab.setAttribute("aria-label", `${service.name}: ${verdicts.get(service.name).headline}`);
  });
}

function render() {
  showNotice();
  show(byId("main"), services().length > 0);
  if (!services().length) return;
  const at = frozen();
  const beside = parts.look.beside;
  const verdicts = new Map(services().map((one) => [one.name, judge(one, beside[one.name], parts.timeline[one.name], at)]));
  chosen ||= gravest(verdicts); // from then on it is a person who chooses
  const service = current();
  const verdict = verdicts.get(service.name);
  const action = parts.actions[service.name];
  showTabs(verdicts);
  showVerdict(service, verdict);
  if (link === "live") announce(service, verdict);
  showYard(service, beside[service.name], verdict, at);
  showRollout(service, beside[service.name], at);
  showAction(action, at);
  showButtons(service, action, link === "live");
  showTimeline(parts.timeline[service.name] ?? [], at);
  showLogs(parts.logs[service.name] ?? []);
}

const token = findToken();
wireConfirm(token, current);
wireCopy();
wireLogs();
wireYard();
setInterval(render, 1000);
listen(token, heard, changed);
