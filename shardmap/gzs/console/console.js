// The console of the Global Zone Service: asks `v1/state` once a second and shows it.
//
//     ask ──▶ taken (checked, bounded) ──▶ show: head, map, zones, operations, audit
//      │ 401: a token is asked for, kept in sessionStorage
//      └ no answer: says so, since when, and greys the last picture
//
// Everything that comes from outside becomes text (`textContent`), never markup; no class, id or address is made of it. What is drawn is patched,
// not built anew, so that focus, open details and scrolling stay. Nothing is loaded but this page's three files and `v1/..`.

const POLL_MS = 1000, LIMIT_MS = 5000, QUIET_MS = 3000;
const LAG_WARN = 1000, LACKS_MAX = 6, RANGES_MAX = 6;
const TEXT_MAX = 400, ZONES_MAX = 32, SHARDS_MAX = 4096, OPS_MAX = 200, SHARES_MAX = 10, NODES_MAX = 40, CHANGES_MAX = 4;
const AUDIT_KEPT = 5000, AUDIT_PAGE = 1000, AUDIT_SHOWN = 200, POINTS_MAX = 200000;

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// ---- text and elements ---------------------------------------------------------------------------------------------------

/** Outside text for showing: bounded, without control and direction characters, which could make a line say something else. */
function text(value, max = TEXT_MAX) {
  const clean = String(value ?? "").replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, "\ufffd");
  return clean.length > max ? clean.slice(0, max) + "…" : clean;
}
const number = (value) => (Number.isFinite(value) ? value : 0);
const array = (value, max) => (Array.isArray(value) ? value.slice(0, max) : []);
const object = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});
const count = (n) => number(n).toLocaleString("en-GB");
const many = (n, one, more = one + "s") => `${count(n)} ${n === 1 ? one : more}`;

function el(tag, cls, says) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (says !== undefined) node.textContent = says;
  return node;
}
function draw(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
  return node;
}
function say(node, says) {
  if (node.textContent !== says) node.textContent = says;
}
function mark(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}
function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

/** Makes the children of `parent` those of `items`, in order; what stands for the same key stays the same element. */
function list(parent, items, key, make, fill) {
  const old = parent.kept ?? new Map(), kept = new Map();
  let place = parent.firstElementChild;
  items.forEach((item, index) => {
    let name = String(key(item, index));
    while (kept.has(name)) name += "'";
    const node = old.get(name) ?? make(item);
    kept.set(name, node);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
    fill(node, item, index);
  });
  for (const [name, node] of old) if (!kept.has(name)) node.remove();
  parent.kept = kept;
}

function duration(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 0.1) return "<0.1 s";
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.floor(s)} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} days`;
}
/** The same in whole seconds, so that it does not flicker. */
const since = (ms) => (ms < 10000 ? `${Math.floor(Math.max(0, ms) / 1000)} s` : duration(ms));
function clock(ms) {
  const at = new Date(number(ms));
  return Number.isNaN(at.getTime()) ? "an unknown time" : at.toLocaleString("sv-SE");
}

// ---- asking --------------------------------------------------------------------------------------------------------------

const session = {
  get: () => { try { return sessionStorage.getItem("ezone-token") ?? ""; } catch { return session.here ?? ""; } },
  set: (token) => {
    session.here = token;
    try { token ? sessionStorage.setItem("ezone-token", token) : sessionStorage.removeItem("ezone-token"); } catch { /* this page's life only */ }
  },
};

class Unanswered extends Error {}
class Refused extends Error {}
class Faulty extends Error {}

/** One question to the service; never waits longer than LIMIT_MS. */
async function ask(path) {
  const stop = new AbortController(), timer = setTimeout(() => stop.abort(), LIMIT_MS), token = session.get();
  try {
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    const options = { headers, signal: stop.signal, cache: "no-store", credentials: "same-origin", redirect: "error" };
    let answer, body;
    try {
      answer = await fetch(path, options);
      body = await answer.text();
    } catch (why) {
      throw new Unanswered(why.name === "AbortError" ? `no answer within ${LIMIT_MS / 1000} s` : "no connection");
    }
    let value;
    try { value = JSON.parse(body); } catch { value = undefined; }
    if (answer.status === 401) throw new Refused(text(value?.error));
    if (!answer.ok) throw new Faulty(`${answer.status}: ${text(value?.error ?? (body || "without a word"), 300)}`);
    if (value === undefined) throw new Faulty(`it answered ${path} with something that is no JSON: ${text(body, 80)}`);
    return value;
  } finally {
    clearTimeout(timer);
  }
}

// ---- taking: what may be anything becomes what the page shows -------------------------------------------------------------

function taken(raw) {
  const s = object(raw);
  if (!Number.isFinite(s.epoch) || !Array.isArray(s.zones) || !Array.isArray(s.shards)) {
    throw new Faulty("it answered v1/state with something that has no epoch, zones and shards; is it another version's?");
  }
  const zones = array(s.zones, ZONES_MAX).map(zoneTaken), shards = array(s.shards, SHARDS_MAX).map(shardTaken);
  return {
    cluster: text(s.cluster, 80), epoch: s.epoch, digest: text(s.digest, 128), fences: text(s.fences_digest, 128), now: number(s.now_ms),
    stopped: s.stopped === null || s.stopped === undefined ? null : text(s.stopped),
    zones, shards, zoneNamed: new Map(zones.map((z) => [z.name, z])), shardNumbered: new Map(shards.map((x) => [x.shard, x])),
    ops: array(s.ops, OPS_MAX).map(opTaken), audit: array(s.audit, AUDIT_PAGE).map(auditTaken),
  };
}
function zoneTaken(raw) {
  const z = object(raw);
  const lacks = Object.entries(object(z.lacks)).slice(0, ZONES_MAX).map(([zone, n]) => ({ zone: text(zone, 60), n: number(n) }));
  const range = ({ stream, first, last }) => ({ stream: number(stream), first: number(first), last: number(last) });
  const unknown = array(z.unknown, AUDIT_PAGE).map(object).map(range);
  const nodes = array(z.nodes, 5000).map((n) => nodeTaken(n));
  return {
    name: text(z.name, 60), id: Number.isInteger(z.id) && z.id >= 0 && z.id < 15 ? z.id : null, state: text(z.state, 40), owns: number(z.owns),
    readOnly: z.read_only === true, ledger: number(z.ledger), parked: number(z.parked), lacks, unknown, nodes,
  };
}
function nodeTaken(raw) {
  const n = object(raw);
  return { name: text(n.name, 60), kind: text(n.kind, 20), heard: number(n.heard_ms_ago), epoch: number(n.map_epoch), holding: number(n.holding) };
}
function shardTaken(raw) {
  const s = object(raw), name = (v) => (v === null || v === undefined ? null : text(v, 60));
  const epochs = { ownerEpoch: number(s.owner_epoch), epoch: number(s.epoch) };
  const service = { global: name(s.global), granted: number(s.granted_ms) };
  return { shard: number(s.shard), kind: text(s.kind, 20), owner: name(s.owner), to: name(s.to), ...epochs, ...service };
}
function opTaken(raw) {
  const o = object(raw);
  const shares = array(o.ways, SHARDS_MAX).map(object).map((s) => (
    { shard: number(s.shard), from: text(s.from, 60), to: text(s.to, 60), state: text(s.state, 40), epoch: number(s.epoch) }));
  return {
    id: number(o.id), title: "", kind: text(o.kind, 40), zone: text(o.zone, 60), name: text(o.name, 64), to: o.to === null || o.to === undefined ? null : text(o.to, 60),
    by: text(o.by, 100), why: text(o.why), forced: array(o.forced, 20).map((r) => text(r)), state: text(o.state, 40), says: text(o.says),
    begun: number(o.begun_ms), ended: Number.isFinite(o.ended_ms) ? o.ended_ms : null, limit: number(o.limit_ms), shares,
  };
}
function auditTaken(raw) {
  const a = object(raw);
  const changes = array(a.changes, 2000).map((c) => text(c)).filter((c) => !c.startsWith("epoch: "));
  return { epoch: number(a.epoch), at: number(a.at_ms), by: text(a.by, 100), why: text(a.why), op: Number.isFinite(a.op) ? a.op : null, changes };
}

// ---- what the page knows -------------------------------------------------------------------------------------------------

let state = null; // the newest, as taken
let heardAt = 0, troubleSince = 0, trouble = null; // performance.now()
let newestEpoch = -1, digestOfNewest = "", wentBack = "";
let chosen = null, litZone = null;
const audit = { entries: new Map(), from: Infinity, asking: false, fault: "" };
const map = {
  digest: null, asked: "", fault: "", triedAt: -Infinity, // of the fences
  fences: [], byShard: new Map(), over: null, pick: null,
  width: 1000, height: 700, k: 1, x: 0, y: 0, // the picture, and how much larger and from where on it is shown
};

const zoneNamed = (name) => state?.zoneNamed.get(name);
const shardNumbered = (n) => state?.shardNumbered.get(n);
const now = () => state.now + (performance.now() - heardAt);
const fencesOf = (shard) => (map.byShard.get(shard) ?? []).map((f) => f.name);
function placeOf(shard) {
  const names = fencesOf(shard), service = shardNumbered(shard)?.global;
  if (service) return `global service ${service}`;
  return names.length === 0 ? "" : names.length <= 2 ? names.join(", ") : `${names[0]} and ${names.length - 1} more`;
}
const shardSaid = (n) => (placeOf(n) ? `${n} ${placeOf(n)}` : `${n}`);

// ---- paint: a shard's owner as a colour, a pattern and a word ------------------------------------------------------------

/** A table that has its own words only: a state named `constructor` is an unknown state like others. */
const table = (words) => Object.assign(Object.create(null), words);
const STATES = table({ up: ["ok", "up"], silent: ["bad", "silent"], unheard: ["warn", "not heard yet"], lost: ["bad", "lost"] });
const OPS = table({ running: ["busy", "running"], done: ["ok", "done"], aborted: ["warn", "aborted"], gave_up: ["bad", "gave up"] });
const SHARES = table({
  waiting: "waiting", on_its_way: "on its way", given: "given", returned: "returned", replaced: "replaced by a later operation",
});

/** The look of a zone: its number decides, so that it never changes; zones from 8 on have dots. */
function look(name) {
  const id = zoneNamed(name)?.id ?? null;
  return id === null ? { colour: "var(--zone-other)", dots: false } : { colour: `var(--zone-${id % 8})`, dots: id >= 8 };
}
function plain({ colour, dots }) {
  return dots ? `radial-gradient(circle, var(--dot) 1.1px, transparent 1.5px) 0 0 / 4px 4px, ${colour}` : colour;
}
const LOST = "repeating-linear-gradient(45deg, var(--lost-a) 0 2px, var(--lost-b) 2px 5px)";
const stripes = (a, b) => `repeating-linear-gradient(135deg, ${a} 0 3px, ${b} 3px 6px)`;

function background(s) {
  if (s.kind === "lost" || s.owner === null) return LOST;
  if (s.kind === "moving") return stripes(look(s.owner).colour, look(s.to).colour);
  return plain(look(s.owner));
}
function ownedBy(s) {
  if (s.kind === "lost" || s.owner === null) return `nobody owns it since epoch ${s.epoch}`;
  const owned = `${s.owner} since epoch ${s.ownerEpoch}`;
  if (s.kind === "moving") return `${owned}, moving to ${s.to ?? "?"} since epoch ${s.epoch}`;
  if (s.kind === "unlock") return `${owned}, locks opened at epoch ${s.epoch}`;
  return s.kind === "own" ? owned : `${owned}, ${s.kind}`;
}

/** The fill of a fence: a colour, or a pattern that is made when it is first needed. */
const patterns = new Map();
function fill(s) {
  if (!s) return "var(--zone-other)";
  const lost = s.kind === "lost" || s.owner === null, a = look(s.owner), b = look(s.to);
  if (!lost && s.kind !== "moving" && !a.dots) return a.colour;
  const key = lost ? "lost" : s.kind === "moving" ? `${a.colour} ${b.colour}` : a.colour;
  if (!patterns.has(key)) patterns.set(key, pattern(`fill-${patterns.size}`, lost, s.kind === "moving", a, b));
  return `url(#${patterns.get(key).id})`;
}
function pattern(id, lost, moving, a, b) {
  const size = lost ? 7 : moving ? 12 : 6;
  const node = draw("pattern", { id, width: size, height: size, patternUnits: "userSpaceOnUse" });
  const part = (tag, attributes, paint) => {
    const shape = draw(tag, attributes);
    shape.style.fill = paint;
    node.append(shape);
  };
  part("rect", { width: size, height: size }, lost ? "var(--lost-b)" : a.colour);
  if (lost) part("rect", { width: 2.2, height: size }, "var(--lost-a)");
  else if (moving) part("rect", { width: size / 2, height: size }, b.colour);
  else part("circle", { cx: 3, cy: 3, r: 1.25 }, "var(--dot)");
  node.turn = lost || moving ? (lost ? 45 : -45) : 0;
  $("map").querySelector("defs").append(node);
  node.setAttribute("patternTransform", `rotate(${node.turn}) scale(${pixel()})`);
  return node;
}

// ---- the map: projection -------------------------------------------------------------------------------------------------

const rad = (degrees) => (degrees * Math.PI) / 180;

/** Albers' equal-area conic with its parallels at a sixth and five sixths of the height (Snyder 1987, p. 100); near the equator a cylinder. */
function projection(west, east, south, north) {
  const middle = (west + east) / 2, wrap = (lng) => rad(((lng - middle + 540) % 360) - 180);
  const one = rad(south + (north - south) / 6), two = rad(north - (north - south) / 6);
  const n = (Math.sin(one) + Math.sin(two)) / 2;
  if (Math.abs(n) < 0.05) {
    const c = Math.cos(rad((south + north) / 2));
    return ([lng, lat]) => [wrap(lng) * c, -Math.sin(rad(lat)) / c];
  }
  const c = Math.cos(one) ** 2 + 2 * n * Math.sin(one);
  return ([lng, lat]) => {
    const r = Math.sqrt(Math.max(0, c - 2 * n * Math.sin(rad(lat)))) / n, t = n * wrap(lng);
    return [r * Math.sin(t), -(Math.sqrt(c) / n - r * Math.cos(t))];
  };
}

/** Where the map begins and ends in the east and west: the widest empty span of longitudes is outside of it. */
function span(longitudes) {
  const used = new Set(longitudes.map((l) => Math.floor(l)));
  const sorted = [...used].sort((a, b) => a - b);
  let gap = sorted[0] + 360 - sorted.at(-1), west = sorted[0];
  sorted.forEach((l, i) => {
    if (i > 0 && l - sorted[i - 1] > gap) { gap = l - sorted[i - 1]; west = l; }
  });
  return [west, west + 360 - gap + 1];
}

/** GeoJSON to fences in the picture's own units; what is no polygon is left out. */
function fencesTaken(raw) {
  if (!Array.isArray(object(raw).features)) throw new Faulty("it answered v1/fences with something that is no GeoJSON");
  const place = (p) => Array.isArray(p) && Number.isFinite(p[0]) && Number.isFinite(p[1]) && Math.abs(p[1]) <= 90 && Math.abs(p[0]) <= 360;
  const fences = raw.features.slice(0, SHARDS_MAX * 2).map(object).flatMap((f) => {
    const shape = object(f.geometry), parts = shape.type === "Polygon" ? [shape.coordinates] : shape.type === "MultiPolygon" ? shape.coordinates : [];
    const rings = array(parts).flatMap((p) => array(p)).map((ring) => array(ring).filter(place)).filter((ring) => ring.length > 2);
    const properties = object(f.properties);
    return rings.length ? [{ name: text(properties.name, 100), shard: number(properties.shard), rings }] : [];
  });
  const points = fences.flatMap((f) => f.rings).flat();
  if (points.length === 0) return { fences: [], height: 700 };
  const [west, east] = span(points.map((p) => p[0]));
  let south = 90, north = -90;
  for (const p of points) { south = Math.min(south, p[1]); north = Math.max(north, p[1]); }
  return scaled(fences, projection(west, east, south, north), points.length);
}
function scaled(fences, project, points) {
  let left = Infinity, right = -Infinity, top = Infinity, bottom = -Infinity;
  for (const fence of fences) {
    fence.rings = fence.rings.map((ring) => ring.map(project));
    for (const [x, y] of fence.rings.flat()) {
      left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
    }
  }
  const scale = 960 / Math.max(right - left, (bottom - top) / 2, 1e-9), least = points > POINTS_MAX ? 0.4 : 0;
  for (const fence of fences) {
    fence.rings = fence.rings.map((ring) => thinned(ring.map(([x, y]) => [20 + (x - left) * scale, 20 + (y - top) * scale]), least));
  }
  return { fences, height: Math.max(60, (bottom - top) * scale + 40) };
}
/** Very large maps are thinned to what an eye can see. */
function thinned(ring, least) {
  if (least === 0) return ring;
  let last = [-1e9, -1e9];
  const kept = ring.filter((p) => Math.hypot(p[0] - last[0], p[1] - last[1]) >= least && (last = p));
  return kept.length > 2 ? kept : ring.slice(0, 3);
}
const pathOf = (fence) => fence.rings.map((ring) => "M" + ring.map(([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`).join("L") + "Z").join("");

/** Where a fence's name has most room: the middle of the widest stretch inside it that is a line of text high. */
function labelPlace(fence) {
  const ys = fence.rings.flat().map((p) => p[1]), top = Math.min(...ys), bottom = Math.max(...ys), half = 7;
  let best = { x: fence.rings[0][0][0], y: (top + bottom) / 2, room: 0 };
  for (let i = 1; i < 24; i++) {
    const y = top + ((bottom - top) * i) / 24;
    const lines = [inside(fence, y), inside(fence, y - half), inside(fence, y + half)];
    for (const [a, b] of lines[0]) {
      const x = (a + b) / 2;
      const around = lines.map((spans) => spans.find(([c, d]) => c <= x && x <= d) ?? [x, x]);
      const from = Math.max(...around.map((s) => s[0])), to = Math.min(...around.map((s) => s[1]));
      const room = to - from, calm = room * (1 - 0.35 * Math.abs(i / 12 - 1));
      if (calm > best.room || (best.room === 0 && b - a > 0 && best.width === undefined)) best = { x: (from + to) / 2, y, room: calm, width: room };
    }
  }
  return best;
}
/** The stretches of the line at `y` that are inside, from the left. */
function inside(fence, y) {
  const xs = [];
  for (const ring of fence.rings) {
    for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
      const [ax, ay] = ring[i], [bx, by] = ring[j];
      if (ay > y !== by > y) xs.push(ax + ((y - ay) / (by - ay)) * (bx - ax));
    }
  }
  xs.sort((a, b) => a - b);
  return Array.from({ length: xs.length >> 1 }, (_, i) => [xs[2 * i], xs[2 * i + 1]]);
}

// ---- the map: drawing ----------------------------------------------------------------------------------------------------

/** Asks for the fences when the state names others than those that are drawn; a failure is told and tried again. */
async function wantFences() {
  if (map.digest === state.fences || map.asked === state.fences || performance.now() - map.triedAt < QUIET_MS) return;
  const digest = (map.asked = state.fences);
  try {
    const { fences, height } = fencesTaken(await ask("v1/fences"));
    map.digest = digest;
    map.fault = "";
    drawFences(fences, height);
  } catch (why) {
    map.fault = `The fences could not be read (${why.message}); asked again in a moment.`;
    map.triedAt = performance.now();
  }
  map.asked = "";
  if (state) showAll();
}

function drawFences(fences, height) {
  const root = $("map"), shapes = draw("g"), labels = draw("g");
  patterns.clear();
  map.byShard = new Map();
  for (const fence of fences) {
    fence.path = draw("path", { class: "fence", d: pathOf(fence), "fill-rule": "evenodd", tabindex: "-1", role: "button" });
    fence.label = draw("text", { class: "label", "aria-hidden": "true" });
    fence.label.textContent = fence.name;
    fence.place = labelPlace(fence);
    fence.path.fence = fence;
    shapes.append(fence.path);
    labels.append(fence.label);
    map.byShard.set(fence.shard, [...(map.byShard.get(fence.shard) ?? []), fence]);
  }
  Object.assign(map, { fences, height, k: 1, x: 0, y: 0, shapes, over: draw("path", { class: "ring over" }), pick: draw("g") });
  root.replaceChildren(draw("defs"), shapes, map.pick, map.over, labels);
  fences[0]?.path.setAttribute("tabindex", "0");
  const places = fences.slice(0, 2000).map((f) => Object.assign(el("option"), { value: f.name }));
  $("places").replaceChildren(...places);
  root.classList.toggle("fine", fences.length > 400);
  view();
}

/** One pixel of the screen in the picture's units. */
function pixel() {
  const box = $("map").getBoundingClientRect();
  return box.width ? Math.max(map.width / map.k / box.width, map.height / map.k / box.height) : 1;
}
function view() {
  const w = map.width / map.k, h = map.height / map.k, slack = map.k > 1 ? 0.2 : 0;
  map.x = Math.min(Math.max(map.x, -slack * w), map.width - w + slack * w);
  map.y = Math.min(Math.max(map.y, -slack * h), map.height - h + slack * h);
  mark($("map"), "viewBox", `${map.x.toFixed(2)} ${map.y.toFixed(2)} ${w.toFixed(2)} ${h.toFixed(2)}`);
  $("map").classList.toggle("large", map.k > 1);
  const unit = pixel();
  for (const p of patterns.values()) p.setAttribute("patternTransform", `rotate(${p.turn}) scale(${unit})`);
  labelled(unit);
}
/** Names stand where they have room, the roomiest first, each 11 pixels high at any size of the map. */
function labelled(unit) {
  const size = 11 * unit, placed = [];
  for (const fence of [...map.fences].sort((a, b) => b.place.room - a.place.room)) {
    const { x, y, width } = fence.place, wide = Math.max(fence.name.length * 0.6 + 1, 4) * size;
    const fits = (width ?? 0) >= wide && !placed.some((p) => Math.abs(p.y - y) < size * 1.3 && Math.abs(p.x - x) < (p.wide + wide) / 2 + size / 2);
    fence.label.style.display = fits ? "" : "none";
    if (!fits) continue;
    placed.push({ x, y, wide });
    const look = { x, y, "font-size": size, "stroke-width": size * 0.28 };
    for (const [name, value] of Object.entries(look)) fence.label.setAttribute(name, value.toFixed(2));
  }
}
/** Larger or smaller, by `factor`, about a point of the picture, which stays where it is or comes to the middle. */
function zoom(factor, about, centred) {
  const k = Math.min(24, Math.max(1, map.k * factor)), middle = about ?? [map.x + map.width / map.k / 2, map.y + map.height / map.k / 2];
  map.x = centred ? middle[0] - map.width / k / 2 : middle[0] - ((middle[0] - map.x) * map.k) / k;
  map.y = centred ? middle[1] - map.height / k / 2 : middle[1] - ((middle[1] - map.y) * map.k) / k;
  map.k = k;
  view();
}
function pointed(event) {
  const root = $("map"), at = new DOMPoint(event.clientX, event.clientY).matrixTransform(root.getScreenCTM().inverse());
  return [at.x, at.y];
}

function showMap() {
  for (const fence of map.fences) {
    const s = shardNumbered(fence.shard), paint = fill(s);
    if (fence.paint !== paint) fence.path.style.fill = fence.paint = paint;
    fence.path.classList.toggle("moving", s?.kind === "moving");
    fence.path.classList.toggle("faint", litZone !== null && s?.owner !== litZone && s?.to !== litZone);
    mark(fence.path, "aria-label", `${fence.name}, shard ${fence.shard}, ${s ? ownedBy(s) : "not in the map"}`);
    mark(fence.path, "aria-pressed", String(fence.shard === chosen));
  }
  show($("no-map"), map.fences.length === 0);
  const none = map.digest === null ? "Asking for the fences …" : "This map has no fences: requests go by ids and the default shard.";
  say($("no-map"), map.fault || none);
  const picked = chosen === null ? [] : (map.byShard.get(chosen) ?? []);
  if (map.pick) list(map.pick, picked, (f) => f.name, (f) => draw("path", { class: "ring pick", d: f.path.getAttribute("d") }), () => {});
}

function tipAt(fence, x, y) {
  const tip = $("tip"), shard = fence.shard, s = shardNumbered(shard);
  const lines = [`shard ${shard}`, s ? ownedBy(s) : "not in the map"].map((line) => el("span", "", line));
  tip.replaceChildren(el("b", "", fence.name), ...lines);
  show(tip, true);
  const box = $("stage").getBoundingClientRect(), own = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, box.width - own.width - 6))}px`;
  tip.style.top = `${y + 18 + own.height > box.height ? Math.max(4, y - own.height - 12) : y + 18}px`;
}
function over(fence, event) {
  if (map.over) mark(map.over, "d", fence ? fence.path.getAttribute("d") : "");
  if (!fence) return show($("tip"), false);
  const box = $("stage").getBoundingClientRect();
  if (event) return tipAt(fence, event.clientX - box.left, event.clientY - box.top);
  const at = new DOMPoint(fence.place.x, fence.place.y).matrixTransform($("map").getScreenCTM());
  tipAt(fence, at.x - box.left, at.y - box.top);
}
/** The nearest fence in the direction of an arrow key; sideways counts double. */
function neighbour(fence, key) {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  let best = null, least = Infinity;
  for (const other of map.fences) {
    const x = other.place.x - fence.place.x, y = other.place.y - fence.place.y, ahead = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
    if (ahead > 0.5 && ahead + 2 * aside < least) { least = ahead + 2 * aside; best = other; }
  }
  return best;
}
/** Tab comes to one element of a group; arrows go on from there. */
function rove(from, to) {
  from?.setAttribute("tabindex", "-1");
  to.setAttribute("tabindex", "0");
  to.focus({ preventScroll: false });
}

// ---- legend, strip -------------------------------------------------------------------------------------------------------

function showLegend() {
  const tally = (test) => state.shards.filter(test).length;
  const owned = (zone) => tally((s) => s.owner === zone && s.kind !== "lost");
  const zones = state.zones.filter((z) => z.id !== null).map((z) => z.name);
  const items = zones.map((zone) => ({ zone, paint: plain(look(zone)), n: owned(zone) }));
  const moving = tally((s) => s.kind === "moving"), lost = tally((s) => s.kind === "lost" || s.owner === null);
  if (moving) items.push({ says: "moving: from, to", paint: stripes("var(--soft)", "var(--line)"), n: moving });
  if (lost) items.push({ says: "lost: nobody owns it", paint: LOST, n: lost });
  list($("legend"), items, (i) => i.says ?? `zone ${i.zone}`, (item) => {
    const li = el("li"), button = el("button"), swatch = el("span", "swatch");
    button.type = "button";
    button.append(swatch, el("span"), el("span", "n"));
    button.addEventListener("click", () => { litZone = item.zone === undefined || litZone === item.zone ? null : item.zone; showAll(); });
    li.append(button);
    return li;
  }, (li, item) => {
    const [swatch, name, n] = li.firstChild.children;
    if (swatch.paint !== item.paint) swatch.style.background = swatch.paint = item.paint;
    say(name, item.says ?? item.zone);
    say(n, count(item.n));
    li.firstChild.disabled = item.zone === undefined;
    mark(li.firstChild, "aria-pressed", String(item.zone !== undefined && litZone === item.zone));
  });
}

function showStrip() {
  const sorted = [...state.shards].sort((a, b) => a.shard - b.shard);
  $("strip").classList.toggle("dense", sorted.length > 120);
  say($("strip-title"), sorted.length ? `Every shard, by number: ${count(sorted.length)}` : "The map has no shards");
  list($("strip"), sorted, (s) => s.shard, (s) => {
    const cell = el("button", "cell");
    cell.type = "button";
    cell.shard = s.shard;
    cell.tabIndex = $("strip").firstElementChild ? -1 : 0;
    return cell;
  }, (cell, s) => {
    const paint = background(s), says = `shard ${s.shard}${placeOf(s.shard) ? ", " + placeOf(s.shard) : ""}: ${ownedBy(s)}`;
    if (cell.paint !== paint) cell.style.background = cell.paint = paint;
    cell.classList.toggle("moving", s.kind === "moving");
    cell.classList.toggle("faint", litZone !== null && s.owner !== litZone && s.to !== litZone);
    mark(cell, "aria-label", says);
    mark(cell, "title", says);
    mark(cell, "aria-pressed", String(s.shard === chosen));
  });
}

// ---- zones ---------------------------------------------------------------------------------------------------------------

function zoneMade() {
  const node = el("article", "zone"), line = el("div", "line"), name = el("h3", "name"), facts = el("dl", "facts");
  const parts = { swatch: el("span", "swatch"), name: el("span"), id: el("span", "soft"), badges: el("span", "badges"), facts, lag: el("p", "lag") };
  Object.assign(parts, { unknown: el("p", "unknown"), nodes: el("details"), summary: el("summary") });
  Object.assign(parts, { table: el("table", "nodes"), more: el("p", "note") });
  name.append(parts.swatch, parts.name);
  line.append(name, parts.id, parts.badges);
  parts.nodes.append(parts.summary, parts.table, parts.more);
  const head = el("thead"), row = el("tr");
  row.append(...["node", "", "map", "heard", "waiting"].map((t) => el("th", "", t)));
  head.append(row);
  parts.table.append(head, (parts.rows = el("tbody")));
  node.append(line, facts, parts.lag, parts.unknown, parts.nodes);
  node.parts = parts;
  return node;
}
function badges(parent, items) {
  list(parent, items, ([, says]) => says, () => {
    const badge = el("span", "badge");
    badge.append(Object.assign(el("span", "mark"), { ariaHidden: "true" }), el("span"));
    return badge;
  }, (badge, [level, says]) => {
    mark(badge, "data-level", level);
    say(badge.lastChild, says);
  });
}
function facts(parent, items) {
  list(parent, items, (i) => i[0], () => {
    const box = el("div");
    box.append(el("dt"), el("dd"));
    return box;
  }, (box, [name, value, level]) => {
    say(box.firstChild, name);
    say(box.lastChild, value);
    mark(box, "data-level", level ?? "none");
  });
}

function levelOf(z) {
  if (z.state === "lost" || z.state === "silent") return "bad";
  return z.state !== "up" || z.readOnly || z.parked > 0 || z.ledger > 0 ? "warn" : "ok";
}
function zoneFilled(node, z) {
  const p = node.parts, edges = z.id === null && z.name === "none";
  const [level, word] = edges ? ["ok", ""] : (STATES[z.state] ?? ["warn", z.state || "state not told"]);
  mark(node, "data-level", edges ? "ok" : levelOf(z));
  const paint = plain(look(z.name));
  if (p.swatch.paint !== paint) p.swatch.style.background = p.swatch.paint = paint;
  say(p.name, edges ? "edges" : z.name);
  say(p.id, edges ? "routers of no zone" : z.id === null ? "" : `zone ${z.id}`);
  badges(p.badges, [...(word ? [[level, word]] : []), ...(z.readOnly ? [["warn", "read-only"]] : [])]);
  show(p.facts, !edges);
  const told = (name, n) => [name, count(n), n ? "warn" : "none"];
  facts(p.facts, [["shards", count(z.owns)], told("conflicts", z.ledger), told("parked", z.parked)]);
  show(p.lag, !edges);
  lagFilled(p.lag, z);
  const records = z.unknown.reduce((n, r) => n + Math.max(0, r.last - r.first + 1), 0);
  show(p.unknown, z.unknown.length > 0);
  const ranges = z.unknown.slice(0, RANGES_MAX).map((r) => `stream ${r.stream}: ${count(r.first)} to ${count(r.last)}`);
  if (z.unknown.length > RANGES_MAX) ranges.push(`and ${many(z.unknown.length - RANGES_MAX, "more range")}`);
  say(p.unknown, `${many(records, "record")} that nobody else has, as far as it told: ${ranges.join(" · ")}`);
  nodesFilled(node, z);
}
function lagFilled(parent, z) {
  const behind = z.lacks.filter((l) => l.n > 0).sort((a, b) => b.n - a.n);
  const told = z.state === "up" ? "" : " (as it told last)";
  const none = z.lacks.length ? `has every record of the other zones${told}` : "has not told which records it lacks";
  const says = behind.length ? `lacks records${told}:` : none;
  const items = [{ says }, ...behind.slice(0, LACKS_MAX)], rest = behind.length - LACKS_MAX;
  if (rest > 0) items.push({ says: `and fewer of ${many(rest, "more zone")}` });
  list(parent, items, (i) => i.says ?? `of ${i.zone}`, (i) => el(i.says ? "span" : "b"), (node, i) => {
    say(node, i.says ?? `${i.zone}\u00a0${count(i.n)}`);
    mark(node, "data-level", i.n >= LAG_WARN ? "warn" : "none");
  });
}
const wrongMap = (n) => n.epoch !== state.epoch;
function nodesFilled(node, z) {
  const p = node.parts, odd = (n) => (wrongMap(n) ? 2 : 0) + (n.heard > QUIET_MS ? 1 : 0) + (n.holding ? 1 : 0);
  const sorted = [...z.nodes].sort((a, b) => odd(b) - odd(a) || (a.kind < b.kind ? -1 : a.kind > b.kind ? 1 : 0) || (a.name < b.name ? -1 : 1));
  const others = z.nodes.filter(wrongMap).length, quiet = z.nodes.filter((n) => n.heard > QUIET_MS).length;
  const holding = z.nodes.reduce((sum, n) => sum + n.holding, 0);
  const said = [others ? `${count(others)} at another map` : `at map ${state.epoch}`];
  if (quiet) said.push(`${count(quiet)} not heard for ${QUIET_MS / 1000} s`);
  if (holding) said.push(`${many(holding, "request")} waiting`);
  say(p.summary, z.nodes.length ? `${many(z.nodes.length, "node")}, ${said.join(", ")}` : "no node is heard of");
  mark(p.summary, "data-level", others || quiet || (!z.nodes.length && z.id !== null) ? "warn" : "none");
  if (!node.opened && z.nodes.length) {
    node.opened = true;
    p.nodes.open = state.zones.length <= 4 && z.nodes.length <= 6;
  }
  show(p.table, z.nodes.length > 0);
  list(p.rows, sorted.slice(0, NODES_MAX), (n) => `${n.kind} ${n.name}`, () => {
    const row = el("tr");
    row.append(...Array.from({ length: 5 }, () => el("td")));
    return row;
  }, (row, n) => {
    const cells = row.children, router = n.kind === "router";
    [n.name, n.kind, String(n.epoch), `${duration(n.heard)} ago`, router ? count(n.holding) : "–"].forEach((t, i) => say(cells[i], t));
    mark(cells[2], "data-level", wrongMap(n) ? "warn" : "none");
    mark(cells[3], "data-level", n.heard > QUIET_MS ? "warn" : "none");
    mark(cells[4], "data-level", n.holding > 0 ? "warn" : "none");
  });
  show(p.more, sorted.length > NODES_MAX);
  say(p.more, `and ${count(sorted.length - NODES_MAX)} more`);
}

function showZones() {
  list($("zones"), state.zones, (z) => z.name, zoneMade, zoneFilled);
  show($("no-zones"), state.zones.length === 0);
  const real = state.zones.filter((z) => z.id !== null), up = real.filter((z) => z.state === "up").length;
  say($("zones-count"), real.length ? `${up} of ${real.length} up` : "");
  $("main").classList.toggle("many", state.zones.length > 5);
}

// ---- operations ----------------------------------------------------------------------------------------------------------

function titleOf(o) {
  const shards = o.shares.length === 1 ? `shard ${shardSaid(o.shares[0].shard)}` : many(o.shares.length, "shard");
  const to = o.to === null ? "" : ` to ${o.to}`;
  switch (o.kind) {
    case "move": return `Move ${shards}${to}`;
    case "evacuate": return `Evacuate ${o.zone}${to || " to the others"}`;
    case "restore": return `Restore ${o.zone}`;
    case "take_over": return `Take over from ${o.zone}${to}`;
    case "unlock": return `Unlock ${shards}`;
    case "fences": return "Change the fences";
    case "add_zone": return `Add zone ${o.zone}`;
    case "remove_zone": return `Remove zone ${o.zone}`;
    case "add_global": return `Add global service ${o.name} in zone ${o.zone}`;
    default: return `${o.kind || "An operation"} ${o.zone}${to}`;
  }
}
function opMade() {
  const node = el("article", "op"), line = el("div", "line");
  const parts = { name: el("h3", "name"), id: el("span", "soft"), badges: el("span", "badges"), says: el("p", "says") };
  Object.assign(parts, { bar: el("div", "bar"), way: el("p", "meta"), shares: el("ul", "shares") });
  Object.assign(parts, { forced: el("p", "forced"), meta: el("p", "meta") });
  parts.bar.setAttribute("aria-hidden", "true");
  line.append(parts.name, parts.id, parts.badges);
  node.append(line, parts.says, parts.bar, parts.way, parts.shares, parts.forced, parts.meta);
  node.parts = parts;
  return node;
}
function opFilled(node, o) {
  const p = node.parts, running = o.state === "running", [level, word] = OPS[o.state] ?? ["warn", o.state || "state not told"];
  mark(node, "data-level", running ? "none" : level);
  say(p.name, titleOf(o));
  say(p.id, `#${o.id}`);
  badges(p.badges, [...(o.forced.length ? [["warn", "forced"]] : []), [level, word]]);
  say(p.says, o.says);
  show(p.says, o.says !== "");
  const tally = new Map();
  for (const s of o.shares) tally.set(s.state, (tally.get(s.state) ?? 0) + 1);
  const order = [...Object.keys(SHARES), ...[...tally.keys()].filter((k) => !(k in SHARES))];
  const parts = ["given", "on_its_way", ...order.filter((k) => k !== "given" && k !== "on_its_way")].filter((k) => tally.has(k));
  show(p.bar, running && o.shares.length > 0);
  list(p.bar, parts, (k) => k, (k) => el("i", k in SHARES ? k : "other"), (i, k) => { i.style.flexGrow = String(tally.get(k)); });
  say(p.way, parts.map((k) => `${count(tally.get(k))} ${SHARES[k] ?? k}`).join(" · "));
  show(p.way, o.shares.length > 1);
  sharesFilled(p.shares, o, running);
  show(p.forced, o.forced.length > 0);
  say(p.forced, `Begun against the preflight: ${o.forced.join("; ")}`);
  const end = o.ended ?? o.begun, took = `took ${duration(end - o.begun)}, ended ${since(now() - end)} ago`;
  const when = running ? `${since(now() - o.begun)} ago, gives up after ${since(o.limit)}` : took;
  say(p.meta, `${o.by || "somebody"}: ${o.why || "no reason given"} · ${when}`);
  mark(p.meta, "title", `begun ${clock(o.begun)}${o.ended === null ? "" : `, ended ${clock(o.ended)}`}`);
}
/** Each shard's way, those that are not there yet first. */
function sharesFilled(parent, o, running) {
  const rank = table({ on_its_way: 0, waiting: 1 }), first = (s) => rank[s.state] ?? 2;
  const sorted = running || o.state === "gave_up" ? [...o.shares].sort((a, b) => first(a) - first(b) || a.shard - b.shard) : [];
  const shown = sorted.slice(0, SHARES_MAX).map((s) => ({ key: s.shard, s })), rest = sorted.length - shown.length;
  if (rest > 0) shown.push({ key: "rest", says: `and ${many(rest, "more shard")}` });
  show(parent, shown.length > 0);
  list(parent, shown, (i) => i.key, () => {
    const li = el("li");
    li.append(el("span"), el("span", "soft"));
    return li;
  }, (li, { s, says }) => {
    say(li.firstChild, s ? `${shardSaid(s.shard)}: ${s.from} → ${s.to}` : says);
    say(li.lastChild, s ? `${SHARES[s.state] ?? s.state}${s.epoch ? `, map ${s.epoch}` : ""}` : "");
  });
}
function showOps() {
  const running = state.ops.filter((o) => o.state === "running"), ended = state.ops.filter((o) => o.state !== "running").sort((a, b) => b.id - a.id);
  list($("running"), running, (o) => o.id, opMade, opFilled);
  list($("ended"), ended, (o) => o.id, opMade, opFilled);
  show($("no-running"), running.length === 0);
  show($("no-ended"), ended.length === 0);
  say($("running-count"), running.length ? many(running.length, "operation") : "");
  say($("ended-count"), ended.length ? `the last ${count(ended.length)}` : "");
}

// ---- the audit -----------------------------------------------------------------------------------------------------------

function auditAdd(entries) {
  for (const entry of entries) audit.entries.set(entry.epoch, entry);
  const epochs = [...audit.entries.keys()].sort((a, b) => b - a);
  for (const old of epochs.slice(AUDIT_KEPT)) audit.entries.delete(old);
}
/** The newest come with every state; if more changes than it holds came in one second, those between are asked for. */
function auditFrom(entries) {
  const newest = Math.max(0, ...audit.entries.keys()), oldest = Math.min(Infinity, ...entries.map((e) => e.epoch));
  auditAdd(entries);
  if (newest && oldest > newest + 1 && oldest !== Infinity) auditAsk(newest, oldest);
  audit.from = Math.min(audit.from, oldest);
}
/** Asks for the changes after map `after` until `until` is reached; answers come oldest first, some at a time. */
async function auditAsk(after, until) {
  if (audit.asking) return;
  audit.asking = true;
  try {
    for (let page = 0; page < 20 && after < until; page++) {
      const got = array(await ask(`v1/audit?after=${after}`), AUDIT_PAGE * 5).map(auditTaken);
      const last = Math.max(0, ...got.map((e) => e.epoch));
      auditAdd(got);
      if (last <= after) break;
      after = last;
    }
    audit.fault = "";
  } catch (why) {
    audit.fault = `The older changes could not be read (${why.message}).`;
  }
  audit.asking = false;
  if (state) { showAudit(); showChosen(); }
}
async function auditOlder() {
  if (!state || audit.asking) return;
  const until = Math.min(audit.from, state.epoch), after = Math.max(0, until - AUDIT_PAGE);
  await auditAsk(after, until);
  if (!audit.fault) audit.from = after;
  showAudit();
  showChosen();
}

function entryMade() {
  const li = el("li"), at = el("div", "at"), body = el("div"), changes = el("div", "what"), more = el("details"), all = el("div", "what");
  more.append(el("summary"), all);
  at.append(el("span"), el("small"));
  body.append(el("div"), el("div", "who"), changes, more);
  li.append(at, body);
  li.parts = { epoch: at.firstChild, ago: at.lastChild, at, why: body.children[0], who: body.children[1], changes, more, all };
  return li;
}
function entryFilled(li, { entry, changes }) {
  const p = li.parts;
  say(p.epoch, String(entry.epoch));
  say(p.ago, `${since(now() - entry.at)} ago`);
  mark(p.at, "title", clock(entry.at));
  say(p.why, entry.why || "no reason given");
  say(p.who, `${entry.by || "somebody"}${entry.op === null ? "" : `, operation #${entry.op}`}`);
  const line = (c) => c, shown = changes.slice(0, CHANGES_MAX), rest = changes.slice(CHANGES_MAX);
  list(p.changes, shown, line, () => el("div"), say);
  show(p.more, rest.length > 0);
  say(p.more.firstChild, `and ${many(rest.length, "more change")}`);
  list(p.all, rest, line, () => el("div"), say);
}
const auditSorted = () => [...audit.entries.values()].sort((a, b) => b.epoch - a.epoch);
function showAudit() {
  const entries = auditSorted();
  const shown = entries.slice(0, AUDIT_SHOWN).map((entry) => ({ entry, changes: entry.changes }));
  list($("audit"), shown, (e) => e.entry.epoch, entryMade, entryFilled);
  show($("no-audit"), entries.length === 0);
  say($("audit-count"), audit.fault || (entries.length ? `the newest ${count(Math.min(entries.length, AUDIT_SHOWN))}` : ""));
  show($("older"), entries.length > 0 && audit.from > 1 && entries.length < AUDIT_SHOWN);
}

// ---- the chosen shard ----------------------------------------------------------------------------------------------------

function choose(shard) {
  chosen = shard;
  const hash = shard === null ? "" : `#shard=${shard}`;
  if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname + location.search);
  if (state) showAll();
  if (shard !== null && audit.from > 1) auditOlder();
}
function showChosen() {
  const s = chosen === null ? undefined : shardNumbered(chosen);
  show($("chosen"), chosen !== null);
  if (chosen === null) return;
  const names = fencesOf(chosen);
  const rest = names.length > 8 ? ` and ${names.length - 8} more` : "";
  const title = names.length ? names.slice(0, 8).join(", ") + rest : `Shard ${chosen}`;
  say($("chosen-title"), s?.global ? `Global service ${s.global}` : title);
  const granted = s?.global ? [["granted", s.granted > 0 ? `for ${(s.granted / 1000).toFixed(1)} s more` : "to nobody", s.granted > 0 ? "none" : "warn"]] : [];
  facts($("chosen-facts"), s
    ? [["shard", String(s.shard)], ["owner", s.kind === "lost" || s.owner === null ? "nobody" : s.owner, s.owner === null ? "bad" : "none"],
       ["since epoch", String(s.ownerEpoch)], ["says the map", wordOf(s), s.kind === "own" || s.kind === "unlock" ? "none" : "warn"], ...granted]
    : [["shard", String(chosen)], ["owner", "not in the map", "warn"]]);
  const told = new RegExp(`\\bshard ${chosen}\\b`);
  const entries = auditSorted().map((entry) => ({ entry, changes: entry.changes.filter((c) => told.test(c)) })).filter((e) => e.changes.length);
  list($("chosen-history"), entries.slice(0, AUDIT_SHOWN), (e) => e.entry.epoch, entryMade, entryFilled);
  const back = audit.from === Infinity || audit.from <= 1 ? "the first" : `the one after epoch ${audit.from}`;
  const found = `${entries.length ? many(entries.length, "change") : "No change"} of it among those since ${back}.`;
  say($("chosen-since"), audit.asking ? "Asking for its changes …" : audit.fault || found);
  show($("chosen-older"), audit.from > 1 && audit.from !== Infinity && !audit.asking);
}
function wordOf(s) {
  if (s.kind === "lost" || s.owner === null) return `lost at ${s.epoch}`;
  if (s.kind === "moving") return `moving to ${s.to ?? "?"}`;
  if (s.kind === "unlock") return `locks opened at ${s.epoch}`;
  return s.kind === "own" ? "settled" : s.kind;
}

// ---- the head: one sentence that says how things are, and what must not be overlooked -------------------------------------

function names(zones) {
  return zones.length > 3 ? `${zones.length} zones` : `${zones.length === 1 ? "zone" : "zones"} ${zones.map((z) => z.name).join(", ")}`;
}
function verdict() {
  const bad = [], warn = [], real = state.zones.filter((z) => z.id !== null);
  const are = (zones, how) => names(zones) + (zones.length === 1 ? " is " : " are ") + how;
  const of = (name) => real.filter((z) => z.state === name);
  const lost = of("lost"), silent = of("silent"), unheard = of("unheard"), readOnly = real.filter((z) => z.readOnly && z.state === "up");
  const nobody = state.shards.filter((s) => s.kind === "lost" || s.owner === null).length;
  const moving = state.shards.filter((s) => s.kind === "moving").length;
  const conflicts = Math.max(0, ...real.map((z) => z.ledger)), running = state.ops.filter((o) => o.state === "running").length;
  if (state.stopped !== null) bad.push("no map is issued");
  const odd = real.filter((z) => !(z.state in STATES)), seen = [unheard, readOnly, odd].some((l) => l.length) || conflicts > 0;
  if (lost.length) bad.push(are(lost, "lost"));
  if (silent.length) bad.push(are(silent, "silent"));
  if (nobody) bad.push(`${many(nobody, "shard")} ${nobody === 1 ? "has" : "have"} no owner`);
  if (unheard.length) warn.push(are(unheard, "not heard yet"));
  if (odd.length) warn.push(are(odd, "in a state that this page does not know"));
  if (readOnly.length) warn.push(are(readOnly, "read-only"));
  if (conflicts) warn.push(`${many(conflicts, "conflict")} to look at`);
  if (moving) warn.push(`${many(moving, "shard")} on the way`);
  if (running) warn.push(`${many(running, "operation")} under way`);
  const up = of("up").length, calm = `Calm: ${many(up, "zone")} up, ${many(state.shards.length, "shard")} owned, nothing under way`;
  const all = [...bad, ...warn].join(" · ");
  const level = bad.length ? "bad" : seen ? "warn" : moving || running ? "busy" : "ok";
  return [level, all ? all[0].toUpperCase() + all.slice(1) : real.length ? calm : "The map has no zones"];
}

function banners() {
  const items = [], ago = since(performance.now() - troubleSince);
  if (trouble instanceof Unanswered) items.push(["bad", "Not reached", `the service has not answered for ${ago} (${trouble.message})${old()}`]);
  if (trouble instanceof Faulty) items.push(["bad", "Fault", `for ${ago} the service has answered with a fault, ${trouble.message}${old()}`]);
  if (state !== null && state.stopped !== null) items.push(["bad", "Stopped: no map is issued", state.stopped || "the service does not say why"]);
  if (wentBack) items.push(["bad", "The map went back", wentBack]);
  list($("banners"), items, (i) => i[1], () => {
    const box = el("div", "banner");
    box.append(Object.assign(el("span", "mark"), { ariaHidden: "true" }), el("strong"), el("span"));
    return box;
  }, (box, [level, title, says]) => {
    mark(box, "data-level", level);
    mark(box.children[2], "aria-live", title.startsWith("Stopped") ? "assertive" : "off"); // what counts seconds is not read out each second
    say(box.children[1], title);
    say(box.children[2], says);
  });
}
function old() {
  return state ? `. What is shown is of ${clock(state.now).slice(11)} by its clock, ${since(performance.now() - heardAt)} old.` : ".";
}

function showHead() {
  const [level, says] = verdict();
  mark($("verdict"), "data-level", trouble ? "none" : level);
  say($("says"), trouble ? `Unknown now; before: ${says[0].toLowerCase()}${says.slice(1)}` : says);
  say($("cluster"), state.cluster);
  say($("epoch"), String(state.epoch));
  say($("digest"), state.digest.slice(0, 10) || "–");
  mark($("digest"), "title", state.digest);
  const sign = trouble ? "(not reached) " : level === "bad" ? "■ " : level === "warn" ? "▲ " : "";
  document.title = `${sign}${says} · ezone ${state.cluster}`;
}

/** What changes by the mere passing of time. */
function tick() {
  const ago = performance.now() - heardAt;
  banners();
  const waits = trouble instanceof Refused && !state;
  mark($("live"), "data-level", waits ? "none" : trouble ? "bad" : state ? "ok" : "none");
  say($("live"), !state ? (trouble && !waits ? "no answer" : "not yet") : trouble ? `${since(ago)} ago` : "just now");
  mark($("main"), "data-picture", !state ? "none" : trouble ? "old" : "live");
  if (state) say($("clock"), `The service's clock: ${clock(now())}`);
  if (!state && trouble) {
    mark($("verdict"), "data-level", "none");
    say($("says"), trouble instanceof Refused ? "Waiting for a token" : "Nothing is known yet");
    document.title = "(no answer) ezone";
  }
}

function showAll() {
  showHead();
  showMap();
  showLegend();
  showStrip();
  showZones();
  showOps();
  showAudit();
  showChosen();
  tick();
}

// ---- the loop ------------------------------------------------------------------------------------------------------------

function heard(next) {
  const is = `and now map ${next.epoch} (${next.digest.slice(0, 10)})`, was = `this page was shown`;
  const another = next.epoch === newestEpoch && next.digest !== digestOfNewest;
  wentBack = another ? `${was} another map ${newestEpoch} before (${digestOfNewest.slice(0, 10)}), ${is}.` : "";
  if (next.epoch < newestEpoch) wentBack = `${was} map ${newestEpoch} before, ${is}: was the service restored from an old backup?`;
  if (next.epoch > newestEpoch) [newestEpoch, digestOfNewest] = [next.epoch, next.digest];
  state = next;
  heardAt = performance.now();
  trouble = null;
  show($("login"), false);
  show($("forget"), session.get() !== "");
  const first = audit.from === Infinity;
  auditFrom(next.audit);
  showAll();
  wantFences();
  if (first && chosen !== null) auditOlder();
}
function failed(why) {
  if (!trouble || trouble.constructor !== why.constructor) troubleSince = performance.now();
  trouble = why;
  if (why instanceof Refused && $("login").hidden) {
    say($("login-why"), session.get() ? `The token was refused: ${why.message || "it is unknown"}. Another one?` : $("login-why").textContent);
    session.set("");
    show($("login"), true);
    $("token").focus();
  }
  show($("forget"), session.get() !== ""); // a token whose role is too small is let go by hand
  if (state) showHead();
  tick();
}

let timer = 0, polling = false;
async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  try {
    heard(taken(await ask("v1/state")));
  } catch (why) {
    const known = [Unanswered, Refused, Faulty].some((kind) => why instanceof kind);
    failed(known ? why : new Faulty(`this page failed to show it: ${text(why?.message)}`));
  }
  polling = false;
  if (!(trouble instanceof Refused)) timer = setTimeout(poll, document.hidden ? 10 * POLL_MS : POLL_MS);
}

// ---- hands ---------------------------------------------------------------------------------------------------------------

function handsOfMap() {
  const root = $("map"), fingers = new Map();
  let moved = 0, spread = 0;
  root.addEventListener("pointerdown", (e) => { fingers.set(e.pointerId, [e.clientX, e.clientY]); moved = 0; spread = 0; });
  root.addEventListener("pointermove", (e) => {
    const last = fingers.get(e.pointerId);
    if (!last) return over(e.target.fence ?? null, e);
    fingers.set(e.pointerId, [e.clientX, e.clientY]);
    const [a, b] = [...fingers.values()];
    if (b) {
      const wide = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) zoom(wide / spread, pointed({ clientX: (a[0] + b[0]) / 2, clientY: (a[1] + b[1]) / 2 }));
      spread = wide;
    } else if (map.k > 1) {
      map.x -= (e.clientX - last[0]) * pixel();
      map.y -= (e.clientY - last[1]) * pixel();
      view();
      root.classList.add("dragged");
      over(null);
    }
    moved += Math.abs(e.clientX - last[0]) + Math.abs(e.clientY - last[1]);
  });
  const up = (e) => { fingers.delete(e.pointerId); root.classList.remove("dragged"); };
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) root.addEventListener(name, up);
  root.addEventListener("pointerleave", () => over(null));
  root.addEventListener("click", (e) => { if (e.target.fence && moved < 6) choose(e.target.fence.shard === chosen ? null : e.target.fence.shard); });
  root.addEventListener("dblclick", (e) => zoom(2, pointed(e)));
  root.addEventListener("wheel", (e) => {
    if (!e.ctrlKey && !e.metaKey) return;
    e.preventDefault();
    zoom(Math.exp(-e.deltaY / 200), pointed(e));
  }, { passive: false });
  root.addEventListener("focusin", (e) => { if (e.target.fence && e.target.matches(":focus-visible")) over(e.target.fence); });
  root.addEventListener("focusout", () => over(null));
  root.addEventListener("keydown", keyOnMap);
  new ResizeObserver(() => { if (map.fences.length) view(); }).observe(root);
}
function keyOnMap(e) {
  const fence = e.target.fence;
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === "+" || e.key === "=") zoom(1.5, fence && [fence.place.x, fence.place.y]);
  else if (e.key === "-") zoom(1 / 1.5);
  else if (e.key === "0") zoom(1 / 24);
  else if (fence && e.key.startsWith("Arrow")) {
    const next = neighbour(fence, e.key);
    if (next) rove(fence.path, next.path);
  } else if (fence && (e.key === "Enter" || e.key === " ")) choose(fence.shard === chosen ? null : fence.shard);
  else return;
  e.preventDefault();
}
function handsOfStrip() {
  const strip = $("strip");
  strip.addEventListener("click", (e) => { if (e.target.shard !== undefined) choose(e.target.shard === chosen ? null : e.target.shard); });
  strip.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[e.key];
    const next = step === -1 ? e.target.previousElementSibling : step === 1 ? e.target.nextElementSibling : null;
    if (step) e.preventDefault();
    if (next) rove(e.target, next);
  });
}
function found(words) {
  const wanted = words.trim().toLowerCase();
  if (wanted === "") return;
  const fence = map.fences.find((f) => f.name.toLowerCase() === wanted) ?? map.fences.find((f) => f.name.toLowerCase().startsWith(wanted));
  const shard = /^\d+$/.test(wanted) && shardNumbered(Number(wanted)) ? Number(wanted) : fence?.shard;
  $("find").setCustomValidity(shard === undefined ? "No fence or shard of that name" : "");
  if (shard === undefined) return $("find").reportValidity();
  choose(shard);
  reveal(fence ?? map.byShard.get(shard)?.[0]);
}
/** What is too small to be seen is shown larger. */
function reveal(fence) {
  if (!fence) return;
  const box = fence.path.getBBox(), wide = Math.max(box.width, box.height);
  if (wide / pixel() < 24) zoom((40 * pixel()) / wide, [box.x + box.width / 2, box.y + box.height / 2], true);
}
function hands() {
  handsOfMap();
  handsOfStrip();
  $("in").addEventListener("click", () => zoom(1.6));
  $("out").addEventListener("click", () => zoom(1 / 1.6));
  $("whole").addEventListener("click", () => zoom(1 / 24));
  $("find").addEventListener("change", () => found($("find").value));
  $("find").addEventListener("input", () => $("find").setCustomValidity(""));
  $("close").addEventListener("click", () => choose(null));
  $("older").addEventListener("click", auditOlder);
  $("chosen-older").addEventListener("click", auditOlder);
  document.addEventListener("keydown", (e) => { if (e.key === "Escape" && e.target !== $("find")) { litZone = null; choose(null); } });
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !(trouble instanceof Refused)) poll(); });
  window.addEventListener("hashchange", fromHash);
  $("forget").addEventListener("click", () => { session.set(""); poll(); });
  $("login").addEventListener("submit", (e) => {
    e.preventDefault();
    const token = $("token").value.trim();
    $("token").value = "";
    if (!/^[\x21-\x7e]+$/.test(token)) return say($("login-why"), "A token is made of letters, digits and signs, without spaces. Another one?");
    session.set(token);
    show($("login"), false);
    poll();
  });
}
function fromHash() {
  const shard = /^#shard=(\d{1,5})$/.exec(location.hash);
  if (shard && Number(shard[1]) !== chosen) choose(Number(shard[1]));
}

hands();
fromHash();
poll();
setInterval(tick, 500);
