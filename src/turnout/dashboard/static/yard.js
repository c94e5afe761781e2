// The picture: the fixed address, the switch, and a track to each daemon. Drawn as in a signal box: straight legs.

import { byId, draw, keyed, lines, make, mark, say, show } from "./dom.js";
import { counted, size, span } from "./figures.js";

const MOST = 8;
const NARROW = window.matchMedia("(max-width: 760px)");
let tracks = []; // of each daemon shown: its role, whether it lives, whether bytes flow
let scene = { tone: "idle", paused: false, line: "closed" };

export function showYard(service, beside, verdict, now) {
  lines(byId("listen"), service.listen);
  const held = service.desired === "paused" || service.held ? `${counted(service.held ?? 0, "connection")} held` : "";
  say(byId("held"), held);
  show(byId("held"), Boolean(held));
  const { router } = service;
  const leaving = router.leaving.length ? `, ${counted(router.leaving.length, "older one")} leaving` : "";
  const up = router.uptime_s === null ? "" : `, up ${span(router.uptime_s)}`;
  say(byId("router"), router.alive ? `router pid ${router.pid}, ${router.plane}${up}${leaving}` : "no router answers");
  const line = router.alive ? "open" : service.desired === "stopped" ? "closed" : "lost";
  mark(byId("station"), "state", service.desired === "paused" && router.alive ? "paused" : line);

  // newest first, and nobody moves when roles change: it is the blade that moves
  const daemons = [...service.daemons].sort((a, b) => b.started_ts - a.started_ts).slice(0, MOST);
  const rates = beside?.rates ?? {};
  keyed(byId("daemons"), daemons, (daemon) => daemon.boot_id, newCard, (node, daemon) => fill(node, daemon, rates[daemon.boot_id], now));
  tracks = daemons.map((daemon) => {
    const rate = rates[daemon.boot_id];
    return { role: daemon.role, alive: daemon.alive, flows: Boolean(rate && rate[0] + rate[1] > 0) };
  });
  scene = { tone: verdict.tone, paused: service.desired === "paused", line };
  lay();
}

function newCard() {
  const card = make("li", "daemon");
  const who = make("div", "who");
  who.append(make("span", "role"), make("strong", "version"), make("span", "health"));
  const load = make("div", "load");
  load.append(make("strong", "count"), make("span", "unit"), make("span", "rate"));
  card.append(who, make("p", "where"), load, make("p", "why"));
  return card;
}

function fill(card, daemon, rate, now) {
  const part = (name) => card.querySelector(`.${name}`);
  const health = !daemon.alive ? "dead" : daemon.suspended ? "suspended" : { true: "healthy", false: "unhealthy", null: "" }[daemon.healthy];
  mark(card, "role", daemon.role);
  mark(card, "health", health);
  say(part("role"), daemon.role);
  say(part("version"), daemon.version || "no version");
  say(part("health"), health);
  const age = daemon.started_ts ? `, up ${span(now - daemon.started_ts)}` : "";
  say(part("where"), `${daemon.host}:${daemon.port} · pid ${daemon.pid || "unknown"}${daemon.alive ? age : ""} · ${daemon.boot_id}`);
  const known = daemon.connections !== null;
  say(part("count"), known ? String(daemon.connections) : "–");
  say(part("unit"), known ? (daemon.connections === 1 ? "connection" : "connections") : "not counted");
  say(part("rate"), rate ? traffic(rate) : "");
  const why = health === "healthy" || health === "" ? "" : daemon.reason;
  say(part("why"), why);
}

const traffic = ([rateIn, rateOut]) => (rateIn + rateOut > 0 ? `${size(rateIn)}/s in · ${size(rateOut)}/s out` : "quiet");

/** Draw the tracks to where the cards are. */
export function lay() {
  const svg = byId("rails");
  const box = svg.getBoundingClientRect();
  if (!box.width || !box.height) return;
  svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  const cards = [...byId("daemons").children];
  const ends = cards.map((card) => {
    const at = card.getBoundingClientRect();
    return at.top + at.height / 2 - box.top;
  });
  const plan = NARROW.matches ? downwards(box, ends) : across(box, ends, byId("station").getBoundingClientRect());
  const order = tracks.map((track, at) => ({ ...track, at })).sort((a, b) => (a.role === "active") - (b.role === "active"));
  const key = JSON.stringify([plan, tracks, scene]);
  if (svg.dataset.key === key) return; // an animation that runs is left alone
  svg.dataset.key = key;
  keyed(svg, pieces(plan, order), (one) => one.key, (one) => draw(one.tag, {}), (node, one) => {
    for (const [name, value] of Object.entries(one.attributes)) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
    if (one.about) {
      node.style.transformOrigin = one.about;
      node.style.transform = `rotate(${one.turn}deg)`;
    }
  });
}

function across(box, ends, station) {
  const y = station.top + station.height / 2 - box.top;
  const point = box.width * 0.34;
  const leg = box.width * 0.78;
  return {
    trunk: `M0 ${y}H${point}`,
    point: [point, y],
    gate: `M${point * 0.45} ${y - 15}V${y + 15}`,
    roads: ends.map((end) => `M${point} ${y}L${leg} ${end}H${box.width}`),
    turns: ends.map((end) => (Math.atan2(end - y, leg - point) * 180) / Math.PI),
    rest: 0,
  };
}

function downwards(box, ends) {
  const x = box.width * 0.36;
  const point = 16;
  const bend = box.width - x - 8;
  return {
    trunk: `M${x} 0V${point}`,
    point: [x, point],
    gate: `M${x - 13} ${point / 2}H${x + 13}`,
    roads: ends.map((end) => `M${x} ${point}V${end - bend}L${x + bend} ${end}H${box.width}`),
    turns: ends.map(() => 90),
    rest: 90,
  };
}

function pieces(plan, order) {
  const found = [];
  const rail = (key, d, state) => {
    for (const layer of ["bed", "rail", "gap"]) found.push({ key: `${key}-${layer}`, tag: "path", attributes: { class: `${layer} ${state}`, d } });
  };
  for (const { at, role, alive } of order) rail(`road-${at}-${role}`, plan.roads[at], alive || role === "candidate" ? role : "stopped");
  rail("trunk", plan.trunk, { open: "active", closed: "stopped", lost: "lost" }[scene.line]);
  const active = order.find((track) => track.role === "active");
  if (active?.flows && scene.line === "open") {
    found.push({ key: "flow", tag: "path", attributes: { class: "flow", d: plan.trunk + plan.roads[active.at].replace(/^M[^LV]*/, "") } });
  }
  const [x, y] = plan.point.map(String);
  found.push({
    key: "blade",
    tag: "path",
    attributes: { class: `blade ${active ? "set" : "open"}`, d: `M${x} ${y}h28` },
    turn: active ? plan.turns[active.at] : plan.rest,
    about: `${x}px ${y}px`,
  });
  if (scene.paused) found.push({ key: "gate", tag: "path", attributes: { class: "gate", d: plan.gate } });
  found.push({ key: "signal", tag: "circle", attributes: { class: `signal ${scene.tone}`, cx: x, cy: y, r: "8" } });
  return found;
}

export function wireYard() {
  new ResizeObserver(lay).observe(byId("yard"));
}
