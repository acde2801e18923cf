"use strict";
// The dashboard. Asks /v2/mesh once a second while it is looked at. Names and reasons come from strangers: they become text, never markup.

const KEPT = 240; // points of a small curve: four minutes
const PATIENCE_MS = 3000;
const LINKS = [
  ["fast", "under 2 ms"], ["middle", "2 to 20 ms"], ["slow", "over 20 ms"], ["unknown", "not measured"],
  ["broken", "circuit breaker"], ["going", "leaving"], ["gone", "down or refused"],
];
const STATES = { up: ["good", "up"], down: ["bad", "down"], draining: ["leaving", "leaving"], open: ["bad", "breaker open"],
  probing: ["bad", "probing"], refused: ["bad", "refused"] };
const history = new Map();
let views = [], chosen = null, drawn = "", timer = 0, failedSince = 0, asking = false;

const byId = (id) => document.getElementById(id);
const space = byId("graph").namespaceURI;

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) node.setAttribute(name, String(value));
  }
  for (const child of children) node.append(child);
  return node;
}
const el = (name, attributes = {}, ...children) => put(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) => put(document.createElementNS(space, name), attributes, children);

// Numbers for people.
const whole = (value) => value < 1e4 ? String(Math.round(value)) : value < 1e6 ? `${(value / 1e3).toFixed(1)} k` : `${(value / 1e6).toFixed(1)} M`;
const bytes = (value) => value < 1e3 ? `${value} B` : value < 1e6 ? `${(value / 1e3).toFixed(1)} kB` : value < 1e9 ? `${(value / 1e6).toFixed(1)} MB` : `${(value / 1e9).toFixed(2)} GB`;
const millis = (seconds) => seconds === null || seconds === undefined ? "–" : seconds < 0.01 ? (seconds * 1e3).toFixed(2) : seconds < 0.1 ? (seconds * 1e3).toFixed(1) : (seconds * 1e3).toFixed(0);
const ms = (seconds) => seconds === null || seconds === undefined ? "–" : `${millis(seconds)} ms`;
const percent = (share) => share > 0 && share < 0.01 ? `${(share * 100).toFixed(1)} %` : `${Math.round(share * 100)} %`;
function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}
const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

function remember(key, value) {
  const points = history.get(key) || [];
  points.push(value === undefined ? null : value);
  if (points.length > KEPT) points.shift();
  history.set(key, points);
}

function spark(key, fill) {
  const points = (history.get(key) || []).map((value, index) => [index, value]).filter((point) => point[1] !== null);
  const image = svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (points.length < 2) return image;
  const top = Math.max(...points.map((point) => point[1])) || 1, last = points[points.length - 1][0] || 1;
  const line = points.map(([index, value]) => `${(index / last * 100).toFixed(1)},${(28 - value / top * 25).toFixed(1)}`).join(" ");
  if (fill) image.append(svg("polygon", { class: "spark-fill", points: `${(points[0][0] / last * 100).toFixed(1)},30 ${line} 100,30` }));
  image.append(svg("polyline", { class: "spark", points: line }));
  return image;
}

function tile(label, value, unit, note, key) {
  const shown = el("div", { class: "value" }, value);
  if (unit) shown.append(el("small", {}, unit));
  const box = el("div", { class: "tile" }, el("div", { class: "label" }, label), shown, el("div", { class: "note" }, note));
  if (key) box.append(spark(key, true));
  return box;
}

function drawTiles(own) {
  const refused = sum(own.refused), all = own.answered + refused;
  const up = own.links.filter((link) => link.state === "up").length;
  byId("tiles").replaceChildren(
    tile("Requests", own.requests_per_s.toFixed(own.requests_per_s < 10 ? 1 : 0), "per s", `${own.in_progress} in progress`, "rate"),
    tile("Half answered within", millis(own.p50_s), own.p50_s === null ? "" : "ms", "p50", "p50"),
    tile("99 of 100 within", millis(own.p99_s), own.p99_s === null ? "" : "ms", "p99", "p99"),
    tile("Answered", whole(own.answered), "", `${whole(own.degraded)} degraded (${percent(own.answered ? own.degraded / own.answered : 0)})`, "degraded"),
    tile("Refused", whole(refused), "", `${percent(all ? refused / all : 0)} of all`, "refused"),
    tile("Neighbours up", `${up}`, `of ${own.links.length}`, `${whole(own.queue_rows)} rows wait here`, "up"),
  );
}

// The graph: this node in the middle, the others on a ring around it.
const stateOf = (view) => view === undefined ? "unseen" : view.draining ? "leaving" : view.ready ? "good" : "bad";

function linkClass(link) {
  if (link.state === "down" || link.state === "refused") return "gone";
  if (link.state === "draining") return "going";
  if (link.state !== "up") return "broken";
  if (link.rtt_s === null) return "unknown";
  return link.rtt_s < 0.002 ? "fast" : link.rtt_s < 0.02 ? "middle" : "slow";
}

function edges() {
  const found = new Map(), rank = LINKS.map((kind) => kind[0]);
  for (const view of views) {
    for (const link of view.links) {
      const ends = [view.node, link.peer].sort(), key = ends.join(" ");
      const edge = found.get(key) || { ends, rows: 0, kind: "fast" };
      edge.rows += link.rows;
      const kind = linkClass(link);
      if (rank.indexOf(kind) > rank.indexOf(edge.kind)) edge.kind = kind;
      found.set(key, edge);
    }
  }
  return found;
}

const short = (name, most) => name.length > most ? `${name.slice(0, most - 1)}…` : name;
const order = new Intl.Collator("en", { numeric: true }).compare;

function layout(names, own, width, height) {
  const places = new Map([[own, [width / 2, names.length === 3 ? height / 4 : height / 2, 0]]]);
  const others = names.filter((name) => name !== own), crowded = others.length > 12, narrow = width < 500;
  const across = width / 2 - (crowded ? (narrow ? 16 : 104) : narrow ? 52 : 84), along = height / 2 - (crowded ? (narrow ? 16 : 100) : 44);
  others.forEach((name, index) => {
    const angle = others.length === 2 ? Math.PI * (index ? 1 : 5) / 6 : -Math.PI / 2 + 2 * Math.PI * index / others.length;
    places.set(name, [width / 2 + across * Math.cos(angle), height / 2 + along * Math.sin(angle), angle]);
  });
  return places;
}

function drawNode(name, own, [x, y, angle], crowded) {
  const label = svg("text", { class: "name" }, short(name, crowded ? 13 : 16));
  if (name === own || !crowded) {
    const above = name !== own && Math.sin(angle) < -0.5;
    put(label, { x, y: above ? y - 19 : y + (name === own ? 33 : 28), "text-anchor": "middle" }, []);
  } else {
    const left = Math.cos(angle) < -0.001, turn = angle * 180 / Math.PI + (left ? 180 : 0);
    put(label, { x: x + (left ? -14 : 14), y: y + 4, "text-anchor": left ? "end" : "start", transform: `rotate(${turn.toFixed(1)} ${x} ${y})` }, []);
  }
  const radius = name === own ? 15 : crowded ? 7 : 10;
  const group = svg("g", { tabindex: "0", role: "button", "data-node": name },
    svg("circle", { class: "halo", cx: x, cy: y, r: radius + 5 }), svg("circle", { class: "dot", cx: x, cy: y, r: radius }), label, svg("title", {}, name));
  group.addEventListener("click", () => choose(name));
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(name); }
  });
  return group;
}

function drawGraph(own) {
  const graph = byId("graph"), links = edges();
  const names = [...new Set([own.node, ...views.map((view) => view.node), ...[...links.values()].flatMap((edge) => edge.ends)])].sort(order);
  const width = Math.max(280, graph.parentElement.clientWidth - 36), crowded = names.length > 13;
  const height = Math.round(Math.min(width * (names.length < 4 ? 0.5 : width < 500 ? 0.95 : crowded ? 0.85 : 0.62), 640));
  const picture = JSON.stringify([width, names, [...links.keys()].sort()]);
  if (picture !== drawn) {
    const places = layout(names, own.node, width, height), held = document.activeElement && document.activeElement.dataset.node;
    graph.setAttribute("class", crowded && width < 500 ? "nameless" : "");
    graph.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const paths = [...links.entries()].map(([key, edge]) => {
      const [[x1, y1], [x2, y2]] = edge.ends.map((end) => places.get(end));
      const straight = edge.ends.includes(own.node), pull = 0.25;
      const bend = straight ? `L ${x2} ${y2}` : `Q ${width / 2 + ((x1 + x2) / 2 - width / 2) * (1 + pull)} ${height / 2 + ((y1 + y2) / 2 - height / 2) * (1 + pull) + (Math.abs(y1 - y2) < 2 && Math.abs((y1 + y2) / 2 - height / 2) < 20 ? -70 : 0)} ${x2} ${y2}`;
      return svg("path", { d: `M ${x1} ${y1} ${bend}`, "data-edge": key }, svg("title"));
    });
    graph.replaceChildren(...paths, ...names.map((name) => drawNode(name, own.node, places.get(name), crowded)));
    if (held) for (const node of graph.querySelectorAll(".node")) if (node.dataset.node === held) node.focus({ preventScroll: true });
    drawn = picture;
  }
  const most = Math.max(1, ...[...links.values()].map((edge) => edge.rows));
  for (const path of graph.querySelectorAll("path")) {
    const edge = links.get(path.dataset.edge);
    path.setAttribute("class", edge.kind);
    const direct = edge.ends.includes(own.node);
    path.setAttribute("stroke-width", (1.2 + (direct ? 6 : 3) * edge.rows / most).toFixed(2));
    path.setAttribute("opacity", direct ? 0.95 : names.length > 20 ? 0.22 : 0.4);
    path.firstChild.textContent = `${edge.ends.join(" – ")}: ${whole(edge.rows)} rows`;
  }
  const seen = new Map(views.map((view) => [view.node, view]));
  for (const node of graph.querySelectorAll("g")) {
    const name = node.dataset.node, state = stateOf(seen.get(name)), words = { good: "takes requests", leaving: "is leaving", bad: "takes no requests", unseen: "does not answer" };
    node.setAttribute("class", `node ${state}${name === own.node ? " own" : ""}${name === chosen ? " chosen" : ""}`);
    node.setAttribute("aria-label", `${name}, ${words[state]}`);
    node.setAttribute("aria-pressed", name === chosen);
  }
}

function choose(name) {
  chosen = name;
  draw();
}

function listed(pairs, long) {
  return el("dl", { class: "counts" }, ...pairs.map(([name, value]) => el("div", {}, el("dt", long ? { class: "long" } : {}, name), el("dd", {}, value))));
}

function drawDetail(own) {
  const view = views.find((one) => one.node === chosen), link = own.links.find((one) => one.peer === chosen);
  const parts = [el("h2", {}, chosen)];
  if (view === undefined) {
    parts.push(el("p", { class: "sub" }, "Says nothing of itself now."));
  } else {
    parts.push(el("p", { class: "sub" }, view.draining ? "Leaving." : view.ready ? `Takes requests, up for ${ago(view.uptime_s)}.` : "Takes no requests."));
    parts.push(listed([
      ["Requests", `${view.requests_per_s.toFixed(1)} per s, ${view.in_progress} now`], ["p50, p99", `${ms(view.p50_s)}, ${ms(view.p99_s)}`],
      ["Answered", whole(view.answered)], ["Degraded", whole(view.degraded)], ["Refused", whole(sum(view.refused))],
      ["Rows for peers", `${whole(view.rows_served)}, ${whole(view.queue_rows)} wait`],
      ["Classes seen", `${view.classes.length} of ${view.num_classes}`], ["Experts per image", String(view.k)], ["Image", view.image_shape.join(" × ")],
      ["Bundle", view.bundle], ["nmoe", view.version], ["Mesh endpoint", view.endpoint || "–"], ["HTTP", view.http || "–"],
    ]));
  }
  if (link) {
    parts.push(el("h3", {}, `From ${own.node}`), listed([
      ["Link", (STATES[link.state] || ["", link.state])[1]], ["Round trip", ms(link.rtt_s)],
      ["SNR", snr(link)],
      ["Goodput", link.goodput_bps === null ? "–" : `${whole(link.goodput_bps / 1e6)} Mbit/s`],
      ["Asked, answered", `${whole(link.asked)}, ${whole(link.answered)}`], ["Hedged", whole(link.hedged)],
      ["Sent, received", `${bytes(link.bytes_sent)}, ${bytes(link.bytes_received)}`],
    ]));
  }
  byId("detail").replaceChildren(...parts);
}

function snr(link) {
  if (link.snr_db === null) return "not measured";
  const clamped = link.snr_clamped ? `, ${whole(link.snr_clamped)} clamped` : "";
  return `${link.snr_db.toFixed(1)} dB, ${link.snr_source}, ${Math.round(link.snr_age_s)} s ago${clamped}`;
}

function drawNeighbours(own) {
  if (!own.links.length) return byId("neighbours").replaceChildren(el("p", { class: "quiet" }, "None yet."));
  const total = own.links.reduce((rows, link) => rows + link.rows, 0) || 1;
  const heads = ["Neighbour", "Link", "Round trip", "p50", "p95", "p50 lately", "Queue", "Share", "Loss", "Failed", "SNR", "Format"];
  const body = [...own.links].sort((one, other) => other.rows - one.rows || order(one.peer, other.peer)).map((link) => {
    const [look, words] = STATES[link.state] || ["bad", link.state], share = link.rows / total;
    const bar = el("span", { class: "bar" }, el("i"));
    bar.firstChild.style.width = `${share * 100}%`;
    const failed = Object.entries(link.failed).map(([reason, count]) => `${whole(count)} ${reason}`).join(", ") || "0";
    const cells = [link.peer, el("span", { class: `badge ${look}` }, words), ms(link.rtt_s), ms(link.p50_s), ms(link.p95_s), spark(`peer ${link.peer}`),
      `${whole(link.queue_rows)} rows`, el("span", { class: "share" }, percent(share), bar), percent(link.loss), failed, snr(link), `${link.format}, ${link.format_bits} bit`];
    return el("tr", {}, ...cells.map((cell, index) => {
      return el("td", { "data-label": heads[index], class: { 1: "link", 9: "wrap full" }[index] || "plain" }, index ? cell : el("span", {}, cell));
    }));
  });
  byId("neighbours").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, ...body)));
}

function row(name, note, ...shares) {
  const bar = el("span", { class: "bar" }, ...shares.map(() => el("i")));
  shares.forEach((share, index) => { bar.children[index].style.width = `${share * 100}%`; });
  return el("div", { class: "row" }, el("p", {}, el("span", {}, name), el("span", {}, note)), bar);
}

function drawExperts(own) {
  const most = Math.max(1, ...own.experts.map((expert) => expert.rows_chosen));
  const rows = own.experts.map((expert) => {
    const share = expert.rows_chosen ? expert.rows_answered / expert.rows_chosen : 1;
    const where = expert.nodes.length === 1 && expert.nodes[0] === expert.expert ? "" : expert.nodes.length ? ` at ${expert.nodes.join(", ")}` : " at no node";
    return row(`${expert.expert}${where}`, `${whole(expert.rows_chosen)}, ${percent(share)} answered`, expert.rows_chosen / most, expert.rows_answered / most);
  });
  byId("experts").replaceChildren(...(rows.length ? rows : [el("p", { class: "quiet" }, "None yet.")]));
}

function drawPrivacy(own) {
  const total = sum(own.bytes_out);
  const names = { float32: "Features as float32", float16: "Features as float16", int8: "Features as int8" };
  const rows = Object.entries(own.bytes_out).sort((one, other) => other[1] - one[1])
    .map(([format, count]) => row(names[format] || format, `${bytes(count)}, ${percent(total ? count / total : 0)}`, 0, total ? count / total : 0));
  byId("privacy").replaceChildren(...rows, listed([["Features in all", bytes(total)], ["Images", "0 B"], ["Weights", "0 B"]]));
}

function drawRefused(own) {
  const parts = [el("h3", {}, "Requests refused")];
  const refused = Object.entries(own.refused);
  parts.push(refused.length ? listed(refused.map(([code, count]) => [code, whole(count)]), true) : el("p", { class: "sub" }, "None."));
  parts.push(el("h3", {}, "Not admitted"));
  const last = (refusal) => ago(own.uptime_s - refusal.last_s);
  parts.push(own.refusals.length
    ? listed(own.refusals.map((one) => [`${one.who || "unknown"}: ${one.reason}`, `${whole(one.count)}×, ${last(one)} ago`]), true)
    : el("p", { class: "sub" }, "Nobody."));
  parts.push(el("h3", {}, "Errors"), listed([...Object.entries(own.malformed).map(([kind, count]) => [`Messages: ${kind}`, whole(count)]),
    ["Messages that could not be read", whole(sum(own.malformed))], ["Log lines not written", whole(own.log_errors)]], true));
  byId("refused").replaceChildren(...parts);
}

function draw() {
  const own = views[0];
  if (!own) return;
  const names = new Set(views.flatMap((view) => [view.node, ...view.links.map((link) => link.peer)]));
  if (chosen === null || !names.has(chosen)) chosen = own.node;
  document.title = `${own.node} – nmoe`;
  byId("mesh-name").textContent = `mesh ${own.mesh}`;
  byId("node-name").textContent = own.node;
  byId("about").textContent = `Up for ${ago(own.uptime_s)}, ${names.size} nodes known, bundle ${own.bundle}, nmoe ${own.version}`;
  if (!failedSince) say(own.draining ? "leaving" : own.ready ? "good" : "bad", own.draining ? "Leaving" : own.ready ? "Takes requests" : "Takes no requests");
  drawTiles(own); drawGraph(own); drawDetail(own); drawNeighbours(own); drawExperts(own); drawPrivacy(own); drawRefused(own);
}

function say(look, words) {
  const state = byId("state");
  if (state.textContent !== words) state.textContent = words;
  state.className = `state ${look}`;
}

function record(own) {
  remember("rate", own.requests_per_s); remember("p50", own.p50_s); remember("p99", own.p99_s);
  const refused = sum(own.refused), before = record.before || { degraded: own.degraded, refused };
  remember("degraded", Math.max(0, own.degraded - before.degraded)); remember("refused", Math.max(0, refused - before.refused));
  record.before = { degraded: own.degraded, refused };
  remember("up", own.links.filter((link) => link.state === "up").length);
  const known = new Set(own.links.map((link) => `peer ${link.peer}`));
  for (const key of history.keys()) if (key.startsWith("peer ") && !known.has(key)) history.delete(key);
  for (const link of own.links) remember(`peer ${link.peer}`, link.p50_s);
}

function fail() {
  if (!failedSince) {
    failedSince = Date.now();
    say("bad", "Unreachable");
  }
  const alarm = byId("alarm"), words = views.length ? "What stands below is what it last said." : "";
  alarm.textContent = `The node has not answered for ${ago((Date.now() - failedSince) / 1000)}. ${words}`;
  alarm.hidden = false;
  byId("content").classList.add("stale");
}

async function ask() {
  if (asking) return;
  asking = true;
  const stop = new AbortController(), late = setTimeout(() => stop.abort(), PATIENCE_MS);
  let heard = null;
  try {
    const answer = await fetch("/v2/mesh", { signal: stop.signal, cache: "no-store" });
    if (answer.ok) heard = await answer.json();
  } catch (error) {
    heard = null; // unreachable, which is shown
  }
  clearTimeout(late);
  asking = false;
  if (heard === null || !heard.length) {
    fail();
  } else {
    failedSince = 0;
    byId("alarm").hidden = true;
    byId("content").classList.remove("stale");
    views = heard;
    record(views[0]);
    draw();
  }
  if (!document.hidden) timer = setTimeout(ask, 1000);
}

byId("legend").replaceChildren(...LINKS.map(([kind, words]) => el("li", {}, svg("svg", { viewBox: "0 0 26 6", "aria-hidden": "true" }, svg("line", { x1: 2, y1: 3, x2: 24, y2: 3, class: kind })), words)));
document.addEventListener("visibilitychange", () => { clearTimeout(timer); if (!document.hidden) ask(); });
window.addEventListener("resize", () => draw());
ask();
