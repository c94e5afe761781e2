// The rollout at the moment: how far it is, the observe window counting down, the failed checks in a row.

import { byId, keyed, lines, make, mark, say, show } from "./dom.js";
import { counted, moment, span } from "./figures.js";

const REACHED = { idle: 0, starting: 1, rolling_back: 1, ready: 2, switched: 4 };
const STEPS = ["start", "probe", "switch", "observe"];

export function showRollout(service, beside, now) {
  const block = service.deployment;
  say(byId("rollout-title"), block.generation ? `Generation ${block.generation}: ${block.state.replace("_", " ")}` : "No rollout yet");
  const reached = REACHED[block.state] ?? 0;
  STEPS.forEach((step, at) => {
    const node = document.querySelector(`[data-step="${step}"]`);
    const state = reached === 0 ? "rest" : at + 1 < reached ? "done" : at + 1 === reached ? "now" : "todo";
    mark(node, "state", state);
    if (state === "now") node.setAttribute("aria-current", "step");
    else node.removeAttribute("aria-current");
  });
  const left = block.observe_remaining_s;
  const whole = beside?.observe_s ?? 0;
  mark(byId("window"), "state", left === null ? "closed" : "open");
  const bar = byId("window-bar");
  bar.max = Math.max(whole, 0.001);
  bar.value = left === null ? 0 : Math.min(left, bar.max);
  const switched = block.switch_ts ? `switched ${moment(block.switch_ts, now)}, ${span(now - block.switch_ts)} ago` : "never switched";
  const observed = left === null ? `no observe window is open; ${switched}` : `observed for ${span(Math.ceil(left))} more of ${span(whole)}`;
  say(byId("window-text"), block.state === "switched" && left === null ? `switched, and observed by nobody` : observed);
  const failures = beside?.failures ?? 3;
  const lamps = Array.from({ length: Math.min(failures, 10) }, (_, at) => at);
  keyed(byId("streak-lamps"), lamps, (at) => at, () => make("i"), (node, at) => mark(node, "lit", String(at < block.health_fail_streak)));
  say(byId("streak-text"), `${block.health_fail_streak} of ${counted(failures, "failed check")} in a row`);
  say(byId("reason"), block.rollback_reason ? `Rollback reason: ${block.rollback_reason}` : "");
}

const SAID = { running: "is under way", done: "is done", failed: "did not come about" };

export function showAction(action, now) {
  show(byId("action"), Boolean(action));
  if (!action) return;
  mark(byId("action"), "state", action.state);
  const took = span((action.ended_ts ?? now) - action.began_ts);
  const when = action.ended_ts ? `${moment(action.ended_ts, now)}, after ${took}` : `for ${took}`;
  say(byId("action-what"), `turnout ${action.verb} ${SAID[action.state]} (${when})`);
  lines(byId("action-lines"), action.lines.slice(-8));
  say(byId("action-fault"), action.fault?.message ?? "");
  say(byId("action-hint"), action.fault?.hint ?? "");
}
