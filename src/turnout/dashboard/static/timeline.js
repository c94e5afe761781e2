// The last rollouts, each as `turnout why` tells it.

import { byId, keyed, lines, make, mark, say, show } from "./dom.js";
import { moment } from "./figures.js";

export function showTimeline(rollouts, now) {
  show(byId("rollouts-none"), rollouts.length === 0);
  keyed(byId("rollouts"), rollouts, (one) => one.generation, newEntry, (node, one) => fill(node, one, now));
}

function newEntry() {
  const entry = make("li");
  const details = make("details");
  const summary = make("summary");
  summary.append(make("span", "when"), make("strong", "what"), make("span", "result"));
  details.append(summary, make("p", "story"), make("ol", "decisions"));
  entry.append(details);
  return entry;
}

function fill(entry, rollout, now) {
  const part = (name) => entry.querySelector(`.${name}`);
  mark(entry, "result", rollout.result.replace(" ", "-"));
  say(part("when"), moment(rollout.began_ts, now));
  const version = rollout.version ? ` ${rollout.version}` : "";
  say(part("what"), `${rollout.generation} · ${rollout.cause || "rollout"}${version}`);
  say(part("result"), rollout.result);
  say(part("story"), rollout.text);
  lines(part("decisions"), rollout.steps.map((step) => `${moment(step.ts, now)}  ${step.text}`));
}
