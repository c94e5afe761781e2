// Nothing changes without a confirmation, and that shows first what the verb itself says that it would do.

import { byId, lines, say } from "./dom.js";
import { typed } from "./figures.js";

const TITLES = { deploy: "Deploy", rollback: "Roll back", pause: "Pause", resume: "Resume", drain: "Drain" };
let asked = null; // what the open dialog is about

async function post(token, service, verb, generation, dryRun) {
  const answer = await fetch(`/services/${encodeURIComponent(service)}/${verb}`, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ generation, dry_run: dryRun }),
  });
  if (answer.headers.get("Content-Type")?.startsWith("application/json")) return answer.json();
  return { error: { message: (await answer.text()).trim() || `the dashboard answered ${answer.status}`, hint: null } };
}

const lost = { error: { message: "the dashboard does not answer", hint: "turnout dashboard" } };

async function open(token, service, verb) {
  const { name, deployment } = service;
  const mine = { name, verb, generation: deployment.generation };
  asked = mine;
  say(byId("confirm-title"), `${TITLES[verb]} ${name}?`);
  say(byId("confirm-command"), typed(verb, name));
  say(byId("confirm-yes"), TITLES[verb]);
  fill("Asking what it would do…", [], null);
  byId("confirm-yes").disabled = true;
  byId("confirm").showModal();
  const told = await post(token, name, verb, mine.generation, true).catch(() => lost);
  if (asked !== mine) return; // it was closed meanwhile, or is about something else
  const fault = told.error ?? told.fault;
  fill(fault ? "It would not come about:" : "It would:", told.lines ?? [], fault);
  byId("confirm-yes").disabled = Boolean(fault);
}

function fill(lead, told, fault) {
  say(byId("confirm-lead"), lead);
  lines(byId("confirm-lines"), told.map((line) => line.replace(/^would /, "")));
  say(byId("confirm-fault"), fault?.message ?? "");
  say(byId("confirm-hint"), fault?.hint ?? "");
}

async function go(token) {
  const { name, verb, generation } = asked;
  byId("confirm-yes").disabled = true; // a second click is none
  const told = await post(token, name, verb, generation, false).catch(() => lost);
  if (!told.error) {
    byId("confirm").close();
    return;
  }
  fill("It did not come about:", [], told.error);
}

/** `current` gives the service that is shown. */
export function wireConfirm(token, current) {
  for (const button of document.querySelectorAll("#buttons button")) {
    button.addEventListener("click", () => open(token, current(), button.dataset.verb));
  }
  byId("confirm-yes").addEventListener("click", () => go(token));
  byId("confirm-no").addEventListener("click", () => byId("confirm").close());
  byId("confirm").addEventListener("close", () => {
    if (!byId("confirm").open) asked = null; // the event comes late: it may have been opened again by now
  });
}

/** Which buttons make sense. */
export function showButtons(service, action, live) {
  const busy = action?.state === "running";
  const buttons = byId("buttons").children;
  for (const button of buttons) {
    if (button.dataset.verb === "pause" || button.dataset.verb === "resume") {
      button.dataset.verb = service.desired === "paused" ? "resume" : "pause";
      say(button, service.desired === "paused" ? "Resume…" : "Pause…");
    }
    const pointless = button.dataset.verb === "drain" && !service.daemons.some((daemon) => daemon.role === "draining");
    button.disabled = busy || !live || pointless;
  }
}
