"""States of a service as `api.rs` shapes them, made up: calm, a move under way, a zone lost, hostile names, 1,024 shards."""

import copy
import json
import os
import time
import tomllib

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../data")


class Scene:
    """What the service answers. `mode`: `ok`, `down`, `silent`, `fault`, `nonsense`, `other`; `token`: the one that it wants."""

    def __init__(self, name, state, fences=None, audit=(), mode="ok"):
        self.name, self.state, self.fences, self.audit, self.mode, self.token = name, state, fences, list(audit), mode, None


def china():
    """The demo's map: fences with their shards as `/v1/fences` gives them, and the shards with their zones."""
    with open(os.path.join(DATA, "china.toml"), "rb") as file:
        told = tomllib.load(file)
    with open(os.path.join(DATA, told["fences"]["file"]), encoding="utf-8") as file:
        fences = json.load(file)
    shard_of = {name: s["id"] for s in told["shards"] for name in s["fences"]}
    for fence in fences["features"]:
        name = fence["properties"][told["fences"]["name"]]
        fence["properties"] = {"name": name, "shard": shard_of[name]}
    return fences, {s["id"]: s["zone"] for s in told["shards"]}


FENCES, OWNERS = china()


# ---- shapes --------------------------------------------------------------------------------------------------------------


def now():
    return int(time.time() * 1000)


def shard(number, owner, epoch=1, kind="own", to=None, newest=None):
    return {"shard": number, "kind": kind, "owner": owner, "owner_epoch": epoch, "to": to, "epoch": newest or epoch}


def node(name, kind, epoch=41, heard=180, holding=0):
    return {"name": name, "kind": kind, "heard_ms_ago": heard, "map_epoch": epoch, "holding": holding}


def zone(name, number, owns, lacks, nodes=None, epoch=41, **more):
    nodes = nodes if nodes is not None else [node(f"{name}-1", "log", epoch, 140), node(f"{name}-1", "router", epoch, 90)]
    told = {"name": name, "id": number, "state": "up", "owns": owns, "read_only": False, "ledger": 0, "parked": 0, "lacks": lacks, "unknown": []}
    return {**told, "nodes": nodes, **more}


def change(epoch, by, why, changes, op=None, ago_s=60):
    return {"epoch": epoch, "at_ms": now() - ago_s * 1000, "by": by, "why": why, "op": op, "changes": [f"epoch: {epoch - 1} -> {epoch}", *changes]}


def share(number, source, to, state, epoch=0):
    return {"shard": number, "from": source, "to": to, "state": state, "epoch": epoch}


def op(number, kind, ways, state="running", says="", by="li", why="", ago_s=4, took_s=None, forced=(), **what):
    begun = now() - ago_s * 1000
    ended = None if state == "running" else begun + int((took_s or 1) * 1000)
    if kind in ("move", "unlock"):
        what["shards"] = [way["shard"] for way in ways]
    told = {"id": number, "kind": kind, **what, "by": by, "why": why, "forced": list(forced), "state": state, "says": says, "begun_ms": begun}
    return {**told, "ended_ms": ended, "limit_ms": 60_000, "ways": ways}


def state(epoch, zones, shards, ops=(), audit=(), stopped=None):
    newest = sorted(audit, key=lambda a: -a["epoch"])[:20]
    told = {"cluster": "demo", "epoch": epoch, "digest": f"{epoch:02x}9f1c47d2" * 6 + "ab12", "fences_digest": "77aa", "now_ms": now(), "stopped": stopped}
    return {**told, "zones": zones, "shards": shards, "ops": list(ops), "audit": newest}


# ---- the demo's map ------------------------------------------------------------------------------------------------------


def history():
    """What happened until epoch 41: the first map, Shanghai moved to and fro, an evacuation and its way back."""
    told = [change(1, "ezone gzs", "the first map", [f"shard {s}: added, {z} since 1" for s, z in OWNERS.items()], ago_s=86400 * 9)]
    told.append(change(4, "chen", "a rehearsal", ["shard 341: sh since 1 -> sh since 1, moving to bj"], 1, 86400 * 2))
    told.append(change(5, "ezone gzs", "a rehearsal", ["shard 341: sh since 1, moving to bj -> bj since 5"], 1, 86400 * 2 - 1))
    told.append(change(7, "chen", "Shanghai goes home", ["shard 341: bj since 5 -> sh since 7"], 2, 7200))
    for i, s in enumerate([484, 495, 506, 550]):
        told.append(change(34 + 2 * i, "wang", "racks of the south are rewired", [f"shard {s}: sh since 1 -> sh since 1, moving to bj"], 3, 3000 - i))
    told.append(change(41, "wang", "racks of the south are rewired", [f"shard {s}: bj since 37 -> sh since 41" for s in (484, 495, 506, 550, 561, 572)], 4, 1260))
    return told


ENDED = [
    dict(number=4, kind="restore", ways=[share(s, "bj", "sh", "given", 41) for s in (484, 495, 506, 550, 561, 572)], state="done", says="every shard is given", by="wang", why="racks of the south are rewired", ago_s=1262, took_s=1.4, zone="sh"),
    dict(number=3, kind="evacuate", ways=[share(s, "sh", "bj", "given", 40) for s in (484, 495, 506, 550, 561, 572)], state="done", says="every shard is given", by="wang", why="racks of the south are rewired", ago_s=3000, took_s=3.1, zone="sh", to="bj"),
    dict(number=1, kind="move", ways=[share(341, "sh", "bj", "returned", 6)], state="aborted", says="aborted by chen: bj was 4,112 records behind", by="chen", why="a rehearsal", ago_s=86400 * 2, took_s=12, to="bj"),
]  # fmt: skip


def ended():
    return [op(**o) for o in ENDED]


def owners(changed=None):
    """The shards of the demo at epoch 41, but for those that `changed` says."""
    since = {341: 7, **{s: 41 for s in (484, 495, 506, 550, 561, 572)}}
    since[561] = 1
    return [(changed or {}).get(s) or shard(s, z, since.get(s, 1)) for s, z in sorted(OWNERS.items())]


def calm():
    zones = [zone("bj", 0, 15, {"sh": 0}), zone("sh", 1, 19, {"bj": 0})]
    return Scene("calm", state(41, zones, owners(), ended(), history()), FENCES, history())


def move():
    told = history() + [change(42, "li", "bj is to be lighter", ["shard 407: bj since 1 -> bj since 1, moving to sh"], 5, 1), change(43, "li", "bj is to be lighter", ["shard 693: bj since 1, moving to sh -> sh since 43"], 5, 0)]
    changed = {407: shard(407, "bj", 1, "moving", "sh", 42), 693: shard(693, "sh", 43)}
    shares = [share(407, "bj", "sh", "on_its_way", 42), share(451, "bj", "sh", "waiting"), share(693, "bj", "sh", "given", 43)]
    running = op(5, "move", shares, says="waits until sh has applied the FENCE of shard 407: 1,284 records to go", why="bj is to be lighter", to="sh")
    bj = [node("bj-1", "log", 43, 20), node("bj-1", "router", 43, 15, 12), node("bj-2", "router", 42, 30)]
    sh = [node("sh-1", "log", 43, 12), node("sh-1", "router", 43, 18)]
    zones = [zone("bj", 0, 14, {"sh": 3}, bj), zone("sh", 1, 20, {"bj": 1284}, sh)]
    return Scene("a move under way", state(43, zones, owners(changed), [running, *ended()], told), FENCES, told)


def service():
    """A global service, which has a name and a grant and no land, and a move of it."""
    users = {**shard(1024, "bj", 1, "moving", "sh", 42), "global": "users", "granted_ms": 4100}
    running = op(5, "move", [share(1024, "bj", "sh", "on_its_way", 42)], says="waits until sh has applied the FENCE", to="sh")
    zones = [zone("bj", 0, 16, {"sh": 0}), zone("sh", 1, 19, {"bj": 0})]
    return Scene("a global service", state(42, zones, [*owners(), users], [running, *ended()], history()), FENCES, history())


def lost():
    south = [s for s, z in OWNERS.items() if z == "sh"]
    waiting = (594, 781, 891, 902)
    changed = {s: shard(s, None, 1, "lost", None, 47) if s in waiting else shard(s, "bj", 48) for s in south}
    told = history() + [change(47, "ezone gzs", "zone sh was silent for 5 s", [f"shard {s}: sh since 1 -> nobody, sh lost it at 47" for s in south], 6, 12)]
    told.append(change(48, "ezone gzs", "zone sh was silent for 5 s", [f"shard {s}: nobody, sh lost it at 47 -> bj since 48" for s in south if s not in waiting], 6, 10))
    shares = [share(s, "sh", "bj", "on_its_way" if s in waiting else "given", 47 if s in waiting else 48) for s in south]
    running = op(6, "take_over", shares, says="waits for the report of bj on shards 594, 781, 891, 902", by="ezone gzs", why="zone sh was silent for 5 s", forced=["a router of sh was heard 2 s ago"], ago_s=12, zone="sh", to="bj")
    bj = zone("bj", 0, 30, {"sh": 0}, [node("bj-1", "log", 48, 40), node("bj-1", "router", 48, 35, 210)], ledger=7)
    gone = [node("sh-1", "log", 41, 17_300), node("sh-1", "router", 41, 16_900)]
    unknown = [{"stream": 0, "first": 88_120, "last": 88_160}, {"stream": 3, "first": 51_002, "last": 51_042}]
    sh = zone("sh", 1, 0, {"bj": 4096}, gone, state="lost", unknown=unknown)
    return Scene("a zone lost", state(48, [bj, sh], owners(changed), [running, *ended()], told), FENCES, told)


def stopped():
    scene = calm()
    scene.name = "stopped"
    scene.state["stopped"] = "a log of zone sh showed map 44 and this service has 41: it was restored from an old backup. Restore the newest one, or adopt the map of sh"
    return scene


def older():
    scene = calm()
    scene.name, scene.state["epoch"] = "an older map", 39
    return scene


def other():
    scene = calm()
    scene.name, scene.state["digest"] = "another map", "ffff" * 16
    return scene


def bare():
    return Scene("an empty map", state(1, [], []), {"type": "FeatureCollection", "features": []})


def burst():
    told = history() + [change(n, "ezone gzs", "a thousand moves", [f"shard 121: bj since {n - 1} -> bj since {n}"], 9, 0) for n in range(42, 101)]
    zones = [zone("bj", 0, 15, {"sh": 0}, epoch=100), zone("sh", 1, 19, {"bj": 0}, epoch=100)]
    return Scene("many changes at once", state(100, zones, owners(), ended(), told), FENCES, told)


# ---- what nobody sends ---------------------------------------------------------------------------------------------------

EVIL = "<img src=x onerror=window.pwned=1>"
WORSE = "<script>window.pwned=2</script>"
WORST = "<svg onload=window.pwned=3>"
FRAME = '<iframe srcdoc="<script>parent.pwned=4</script>" src="http://evil.invalid/"></iframe>'
QUOTES = "\"' onmouseover=window.pwned=5 style=background:url(http://evil.invalid/q) '\""
TURNED = "\u202eworramot dehsinif\u202c \u2066x\u2069 \x00\x07\x1b[31m"


def hostile():
    fences = copy.deepcopy(FENCES)
    for i, fence in enumerate(fences["features"]):
        fence["properties"]["name"] = f"{WORST} {i} {QUOTES}"
    long = "W" * 5000
    told = [change(41, EVIL, FRAME + " <b>bold</b>", [f"shard 341: {WORSE}", TURNED, long, FRAME, EVIL, QUOTES])]
    ops = [op(1, EVIL, [share(341, WORSE, EVIL, QUOTES)], says=FRAME, by=QUOTES, why=TURNED, zone=WORSE), op(2, "move", [], state=EVIL, says=long, to=FRAME)]
    ops.append(op(3, "__proto__", [share(341, "__proto__", "constructor", "toString")], zone="hasOwnProperty", forced=[EVIL, long]))
    zones = [zone(EVIL, 0, 15, {WORSE: 5, "__proto__": 7, "constructor": 9}, [node(EVIL, QUOTES), node(long, "router", holding=3)], state="constructor")]
    zones += [zone("__proto__", 1, 19, {}, state=EVIL), zone(TURNED, 2, 0, {}), zone(EVIL, 0, 1, {})]
    shards = [{**s, "owner": EVIL if s["owner"] == "bj" else "__proto__"} for s in owners({121: shard(121, EVIL, kind="constructor"), 341: shard(341, EVIL, kind="moving", to=FRAME)})]
    hostile = state(41, zones, shards, ops, told)
    hostile.update(cluster=WORSE + EVIL, digest=QUOTES, fences_digest=EVIL)
    return Scene("hostile", hostile, fences, told)


def wrong(value):
    """A state with the right names and `value` wherever one can stand."""
    fences = {"type": "FeatureCollection", "features": [value, {"geometry": value}, {"geometry": {"type": "Polygon", "coordinates": [[[value, 1], [1, value], value]]}, "properties": value}]}
    names = {"name": value, "id": value, "state": value, "owns": value, "ledger": value, "parked": value, "lacks": value, "unknown": [value], "nodes": [value]}
    broken = {"cluster": value, "epoch": 41, "digest": value, "fences_digest": value, "now_ms": value, "zones": [names, value], "shards": [value], "ops": [value], "audit": [value]}
    return broken, fences


def wrong_types():
    return Scene("wrong types", *wrong({"a": ["b", 1e300]}))


def nulls():
    return Scene("nothing but nulls", *wrong(None))


# ---- as large as it gets -------------------------------------------------------------------------------------------------


def large():
    columns, fences = 32, []
    for n in range(1024):
        x, y = 100 + (n % columns) * 0.7, 20 + (n // columns) * 0.6
        ring = [[x, y], [x + 0.7, y], [x + 0.7, y + 0.6], [x, y + 0.6], [x, y]]
        fences.append({"type": "Feature", "properties": {"name": f"F{n}", "shard": n}, "geometry": {"type": "Polygon", "coordinates": [ring]}})
    names = [f"zone-{i:02}" for i in range(15)]
    of = [names[(n // columns) // 11 * 5 + (n % columns) * 5 // 32] for n in range(1024)]
    shards = [shard(n, of[n], 1 + n % 7) for n in range(1024)]
    leaving = [n for n in range(1024) if of[n] == "zone-03"] + [n for n in range(1024) if of[n] == "zone-04"]
    leaving = leaving[:69] + [n for n in range(1024) if n not in leaving[:69]][: 300 - 69]
    for n in leaving[:40]:
        shards[n] = shard(n, of[n], 1, "moving", "zone-12", 900)
    shares = [share(n, of[n], "zone-12", "on_its_way" if i < 40 else "waiting", 900 if i < 40 else 0) for i, n in enumerate(leaving)]
    running = op(77, "evacuate", shares, says="waits until 14 routers have confirmed map 900", by="drill", why="a drill", zone="zone-03")
    zones = []
    for i, name in enumerate(names):
        lacks = {other: (i * 37 + j * 11) % 50 * (40 if i == 7 else 1) for j, other in enumerate(names) if other != name}
        zones.append(zone(name, i, of.count(name), lacks if i % 3 else dict.fromkeys(lacks, 0), epoch=900))
    zones[5]["read_only"], zones[6]["parked"] = True, 3
    edge = [node(f"edge-{n:04}", "router", 900 if n % 250 else 899, 100 + n % 80, n % 3 == 0) for n in range(1000)]
    zones.append(zone("none", None, 0, {}, edge, state="up"))
    told = [change(n, "drill", "a drill", [f"shard {n}: zone-03 since 1 -> zone-03 since 1, moving to zone-12"], 77, 900 - n) for n in range(700, 901)]
    return Scene("as large as it gets", state(900, zones, shards, [running], told), {"type": "FeatureCollection", "features": fences}, told)


SCENES = {
    "calm": calm, "move": move, "service": service, "lost": lost, "stopped": stopped, "older": older, "other": other, "bare": bare, "burst": burst,
    "hostile": hostile, "wrong types": wrong_types, "nothing but nulls": nulls, "large": large,
}  # fmt: skip
