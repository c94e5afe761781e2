// What an operator needs in ten seconds: what is active, what is wrong, since when, why, and what to type.

import { byId, lines, mark, say, show } from "./dom.js";
import { counted, moment, span, typed } from "./figures.js";

const FLIGHT = { starting: "is starting", rolling_back: "goes back to an earlier build", ready: "is healthy, and about to take over" };
export const activeOf = (service) => service.daemons.find((daemon) => daemon.role === "active");
const GRAVEST = ["bad", "warn", "busy", "watch", "idle", "ok"];
const named = (daemon) => daemon.version || daemon.boot_id;

/** Decided from what the server sent; nothing here touches the page. */
export function judge(service, beside, rollouts, now) {
  const block = service.deployment;
  const active = activeOf(service);
  const where = service.listen.join(" and ");
  const more = service.problems.slice(1).map((problem) => problem.what + (problem.mend ? `: ${problem.mend}` : ""));
  if (service.problems.length) {
    const { severity, what, mend } = service.problems[0];
    return { tone: severity, headline: capital(what), detail: [since(beside, now), serving(active)], mend, more };
  }
  if (service.desired === "stopped") {
    const failed = service.failed_start;
    const headline = failed ? capital(failed.what) : "Stopped by hand";
    const mend = failed ? failed.mend : service.start_with;
    const how = service.router.alive ? "resets" : "refuses"; // without a router nobody listens
    return { tone: "idle", headline, detail: [`${where} ${how} what comes`], mend, more };
  }
  if (FLIGHT[block.state]) {
    const who = service.daemons.find((daemon) => daemon.role === "candidate");
    const headline = `Generation ${block.generation} ${FLIGHT[block.state]}`;
    return { tone: "busy", headline, detail: [who ? named(who) : "", serving(active)], mend: "", more };
  }
  if (!active) {
    return { tone: "idle", headline: "Nothing is active", detail: [where], mend: typed("up", service.name), more };
  }
  const switched = block.switch_ts ? `since ${moment(block.switch_ts, now)}, for ${span(now - block.switch_ts)}` : "";
  const connections = active.connections === null ? "" : counted(active.connections, "connection");
  if (block.state === "switched") {
    const left = block.observe_remaining_s === null ? "by nobody" : `for ${span(Math.ceil(block.observe_remaining_s))} more`;
    const headline = `${named(active)} serves, and is observed ${left}`;
    return { tone: "watch", headline, detail: [switched, connections], mend: "", more };
  }
  if (block.rollback_reason) {
    const failed = `generation ${block.generation} ${ending(rollouts, block.generation, now)}: ${block.rollback_reason}`;
    const mend = typed(`why ${block.generation}`, service.name);
    return { tone: "ok", headline: `${named(active)} serves`, detail: [failed, connections], mend, more };
  }
  const word = active.healthy ? "is healthy and serves" : "serves";
  return { tone: "ok", headline: `${named(active)} ${word}`, detail: [switched, connections], mend: "", more };
}

function ending(rollouts, generation, now) {
  const rollout = rollouts?.find((one) => one.generation === generation);
  if (!rollout?.ended_ts || !["put back", "given up"].includes(rollout.result)) return "did not stay";
  return `was ${rollout.result} at ${moment(rollout.ended_ts, now)}, ${span(now - rollout.ended_ts)} ago`;
}

function since(beside, now) {
  if (!beside?.since_ts) return "";
  const begun = `since ${moment(beside.since_ts, now)}, for ${span(now - beside.since_ts)}`;
  return beside.seen_to_begin ? begun : `${begun} or longer`;
}

const serving = (active) => (active?.alive ? `${named(active)} is active` : "nothing serves");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** The name of the service that needs eyes most. */
export function gravest(verdicts) {
  const rank = ([, verdict]) => GRAVEST.indexOf(verdict.tone);
  return [...verdicts].sort((a, b) => rank(a) - rank(b))[0]?.[0] ?? "";
}

export function showVerdict(service, verdict) {
  mark(byId("verdict"), "tone", verdict.tone);
  say(byId("headline"), verdict.headline);
  say(byId("detail"), verdict.detail.filter(Boolean).join(" · "));
  show(byId("mend"), Boolean(verdict.mend));
  say(byId("mend-text"), verdict.mend);
  lines(byId("more"), verdict.more);
  const sign = { bad: "✕", warn: "!", busy: "…", watch: "◔", ok: "●", idle: "○" }[verdict.tone];
  const title = `${sign} ${service.name}: ${verdict.headline}`;
  if (document.title !== title) document.title = title;
}

let told = "";

/** For a screen reader: only when who serves, the state, or what is wrong has changed; not with every second. */
export function announce(service, verdict) {
  const block = service.deployment;
  const key = [service.name, verdict.tone, block.state, block.generation, block.active_boot_id, service.problems.length].join("|");
  if (key === told) return;
  told = key;
  say(byId("announcer"), `${service.name}: ${verdict.headline}`);
}

export function wireCopy() {
  const button = byId("mend-copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("mend-text").textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(byId("mend-text"));
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
