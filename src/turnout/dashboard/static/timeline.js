// The last rollouts, each as `turnout why` tells it.

import { byId, keyed, lines, make, mark, say, show } from "./dom.js";
import { moment } from "./figures.js";

let newest; // the generation that was opened last by the page itself

export function showTimeline(rollouts, now) {
  show(byId("rollouts-none"), rollouts.length === 0);
  openNewest(rollouts[0]?.generation);
  keyed(byId("rollouts"), rollouts, (one) => one.generation, newEntry, (node, one) => fill(node, one, now));
}

/** The newest tells its story by itself; one that somebody has opened or closed is left as it is. */
function openNewest(generation) {
  if (generation === newest) return;
  newest = generation;
  for (const details of document.querySelectorAll("#rollouts details[data-by='page']")) details.open = false;
}

function newEntry(rollout) {
  const entry = make("li");
  const details = make("details");
  const summary = make("summary");
  summary.append(make("span", "when"), make("strong", "what"), make("span", "result"));
  details.append(summary, make("p", "story"), make("ol", "decisions"));
  if (rollout.generation === newest) {
    details.open = true;
    details.dataset.by = "page";
    summary.addEventListener("click", () => delete details.dataset.by);
  }
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
