#!/usr/bin/env python3
"""Shows the console made-up states of a service in headless Chromium, and looks at what its page says. Standard library only.

    shardmap/gzs/tests/console/run.py [--shots DIR] [--chromium PROGRAM]

Prints a line for each check; exit 0: all hold, 1: one does not, 77: not run, because Chromium is missing. `--shots` writes a picture of each state.
The browser is driven over its DevTools protocol on two pipes; whatever it would send beyond this machine arrives at a proxy that is this program.
"""

import argparse
import base64
import fcntl
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True  # nothing is left behind beside the sources
from scenes import SCENES, Scene
from service import Service

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT_S = 60

# What Chromium asks its maker by itself, whatever page it shows: the time, updates, accounts. It arrives at `Outside` and ends there.
BROWSERS_OWN = re.compile(r"^[A-Z]+ (https?://)?([a-z0-9.-]+\.)?(google|googleapis|gstatic)\.com[:/]")


# ---- the browser ---------------------------------------------------------------------------------------------------------


class Outside:
    """Stands where the world would be: a proxy that answers nobody and remembers who was asked for."""

    def __init__(self):
        self.asked = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                stream, _ = self.listener.accept()
                stream.settimeout(5)
                self.asked.append(stream.recv(2048).split(b"\r\n")[0].decode("latin-1"))
                stream.close()
            except TimeoutError:
                self.asked.append("a connection that said nothing")
            except OSError:
                return


def pipe():
    """A pipe whose descriptors are none of those that the browser wants to have its own on."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low]
    for end in low:
        os.close(end)
    return high


class Browser:
    """Chromium, with its messages: a JSON object each, ended by a zero byte, on descriptors 3 and 4."""

    def __init__(self, program, outside):
        self.home = tempfile.mkdtemp(prefix="console-chromium-")
        (to_it, self.write), (self.read, from_it) = pipe(), pipe()
        arguments = [
            program, "--headless=new", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={self.home}", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-default-apps", "--disable-extensions", "--disable-domain-reliability", "--no-pings", "--hide-scrollbars",
            "--disable-features=OptimizationHints,MediaRouter,Translate", "--force-color-profile=srgb",
            f"--proxy-server=http://127.0.0.1:{outside.port}", "about:blank",
        ]  # fmt: skip
        script = f'exec 3<&{to_it} 4>&{from_it} {to_it}<&- {from_it}>&-; exec "$@"'
        environment = {**os.environ, "HOME": self.home, "XDG_CONFIG_HOME": self.home, "XDG_CACHE_HOME": self.home}
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *arguments], pass_fds=(to_it, from_it), env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_it)
        os.close(from_it)
        self.rest, self.number, self.events, self.session = b"", 0, [], None

    def messages(self, until):
        """What it says next; a list, empty when the time is up."""
        if not select.select([self.read], [], [], max(0, until - time.monotonic()))[0]:
            return []
        got = os.read(self.read, 1 << 20)
        if not got:
            raise SystemExit(f"chromium ended, with {self.process.wait(5)}")
        *whole, self.rest = (self.rest + got).split(b"\0")
        return [json.loads(message) for message in whole]

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            answer = None
            for message in self.messages(until):
                if message.get("id") == self.number:
                    answer = message
                elif "method" in message:
                    self.events.append(message)
            if answer is not None:
                if "error" in answer:
                    raise SystemExit(f"chromium refuses {method}: {answer['error']}")
                return answer["result"]
        raise SystemExit(f"chromium has not answered {method} within {LIMIT_S} s")

    def open(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def eval(self, script):
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise SystemExit(f"{script}: {got['exceptionDetails']['exception'].get('description')}")
        return got["result"].get("value")

    def close(self):
        os.close(self.write)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


# ---- a page, and what is checked of it -----------------------------------------------------------------------------------


class Page:
    """The console in the browser, asking the made-up service."""

    def __init__(self, browser, service, shots):
        self.browser, self.service, self.shots = browser, service, shots
        self.held, self.failed = 0, []

    def open(self, scene, width=1280, height=800, theme="light", path=""):
        """Shows `scene` in a fresh page, as a new tab would: nothing is remembered."""
        self.service.scene = scene
        self.service.asked.clear()
        b = self.browser
        b.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700)
        features = [{"name": "prefers-color-scheme", "value": theme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
        b.call("Emulation.setEmulatedMedia", features=features)
        b.call("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")
        b.call("Page.navigate", url=f"{self.service.origin}/{path}")
        self.until("document.readyState === 'complete' && location.protocol === 'http:'")
        if b.eval("sessionStorage.length"):
            b.eval("sessionStorage.clear()")
            b.call("Page.reload")

    def until(self, script):
        """Waits until `script` is true; whether it became so. What fails is not true yet."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            if self.browser.eval(f"(() => {{ try {{ return {script}; }} catch {{ return false; }} }})()"):
                return True
            time.sleep(0.05)
        return False

    def check(self, what, script):
        """`script` becomes true; see `expanded` for its short hand."""
        script = expanded(script)
        says = lambda: f"never true: {script}\n        the page says: {self.browser.eval('document.body.innerText')[:1500]!r}"
        self.note(what, self.until(script), says)

    def note(self, what, holds, why=lambda: ""):
        self.held += bool(holds)
        print(f"{'ok    ' if holds else 'FAILED'}  {self.service.scene.name}: {what}", flush=True)
        if not holds:
            self.failed.append(what)
            print(f"        {why()}", flush=True)

    def press(self, key, code=None):
        text = {"Enter": "\r", "+": "+"}.get(key)
        params = {"key": key, "windowsVirtualKeyCode": code or 0, **({"text": text} if text else {})}
        self.browser.call("Input.dispatchKeyEvent", type="keyDown", **params)
        self.browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector):
        at = self.browser.eval(
            f"(() => {{ const n = document.querySelector({json.dumps(selector)}); n.scrollIntoView({{block: 'nearest'}});"
            " const b = n.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.click_at(*at)

    def click_at(self, x, y):
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def shot(self, name, whole=False):
        if not self.shots:
            return
        self.browser.eval("new Promise((r) => setTimeout(r, 600))")  # colours fade in: what is drawn now is what stays
        params = {"captureBeyondViewport": whole}
        if whole:
            size = self.browser.call("Page.getLayoutMetrics")["cssContentSize"]
            params["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}
        data = self.browser.call("Page.captureScreenshot", format="png", **params)["data"]
        with open(os.path.join(self.shots, f"{name}.png"), "wb") as file:
            file.write(base64.b64decode(data))


def expanded(script):
    """`@id` stands for the text of the element with that id, `@id!` for whether it is shown."""
    script = re.sub(r"@([a-z-]+)!", r"(document.getElementById('\1').checkVisibility())", script)
    return re.sub(r"@([a-z-]+)", r"document.getElementById('\1').innerText", script)


# ---- the states ----------------------------------------------------------------------------------------------------------


def calm(p):
    p.open(SCENES["calm"]())
    p.check("it says that all is calm", "@says === 'Calm: 2 zones up, 34 shards owned, nothing under way'")
    p.check("it names the cluster and the map's epoch", "@cluster === 'demo' && @epoch === '41'")
    p.check("the map has every fence", "document.querySelectorAll('.fence').length === 34")
    p.check("a fence says its name, shard, owner and since when", f"{FENCE('Shanghai')}.ariaLabel === 'Shanghai, shard 341, sh since epoch 7'")
    p.check("owners have two colours", "new Set([...document.querySelectorAll('.fence')].map((f) => getComputedStyle(f).fill)).size === 2")
    p.check("the legend counts", "@legend.replace(/\\s+/g, ' ').trim() === 'bj 15 sh 19'")
    p.check("empty lists say so", "@no-running! && @no-running === 'No operation is under way.'")
    p.check("zones say that they are up and lack nothing", "document.querySelectorAll('.zone').length === 2 && @zones.match(/has every record of the other zones/g).length === 2")
    p.check("nodes say their map and when they were heard", "@zones.includes('2 nodes, at map 41') && /0\\.\\d s ago/.test(@zones)")
    p.check("the audit says who and why", "@audit.includes('chen') && @audit.includes('Shanghai goes home')")
    p.check("no banner", "!document.querySelector('.banner')")
    p.check("the title says it too", "document.title === 'Calm: 2 zones up, 34 shards owned, nothing under way · ezone demo'")
    boxes = ", ".join(f"{FENCE(name)}.getBoundingClientRect()" for name in ("Beijing", "Shanghai", "Xinjiang"))
    north_and_west = f"(([b, s, x]) => b.bottom < s.top && x.right < b.left)([{boxes}])"
    p.check("Beijing lies north of Shanghai, Xinjiang west of both", north_and_west)
    p.check("nothing is wider than the window", "document.documentElement.scrollWidth <= innerWidth")
    p.shot("calm-light")
    p.shot("calm-light-whole", whole=True)
    first = [path for path in p.service.asked if path.startswith("/v1/")][:2]
    p.note("the fences are asked for as soon as the state is there", first == ["/v1/state", "/v1/fences"], lambda: str(first))
    asked = p.service.count("/v1/state")
    p.note("the state is asked for every second, the fences once", later(lambda: p.service.count("/v1/state") >= asked + 2) and p.service.count("/v1/fences") == 1)
    p.open(SCENES["calm"](), theme="dark")
    p.check("dark: drawn", "document.querySelectorAll('.fence').length === 34")
    p.shot("calm-dark")


def palette(p):
    p.open(SCENES["calm"]())
    for theme in ("light", "dark"):
        p.browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        colours = p.browser.eval("[0,1,2,3,4,5,6,7].map((i) => getComputedStyle(document.documentElement).getPropertyValue(`--zone-${i}`).trim())")
        for eyes, matrix in EYES.items():
            near, pair = nearest(colours, matrix)
            p.note(f"{theme}: the nearest two of the zones' colours are {near:.1f} apart to {eyes}, at least {APART}", near >= APART, lambda: f"{pair}")
        for ink, ground in READ:
            pair = p.browser.eval(f"['{ink}', '{ground}'].map((n) => getComputedStyle(document.documentElement).getPropertyValue(n).trim())")
            seen = contrast(*pair)
            p.note(f"{theme}: {ink} on {ground} has a contrast of {seen:.1f}, at least 4.5", seen >= 4.5)


def choosing(p):
    p.open(SCENES["calm"]())
    p.check("drawn", "document.querySelectorAll('.fence').length === 34")
    x, y = p.browser.eval(f"(() => {{ const f = {FENCE('Sichuan')}, b = f.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
    p.browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    p.check("hovering shows name, shard, owner, since when", "@tip!  && @tip.includes('Sichuan') && @tip.includes('shard 561') && @tip.includes('sh since epoch 1')")
    p.click_at(x, y)
    p.check("a click chooses", "@chosen! && @chosen-title === 'Sichuan' && @chosen-facts.includes('561')")
    p.click("#find")
    p.browser.call("Input.insertText", text="Shanghai")
    p.press("Enter", 13)
    p.check("a fence is found by its name, and its history is shown", "@chosen-title === 'Shanghai' && document.querySelectorAll('#chosen-history > li').length === 4")
    p.check("the history is this shard's alone", "[...document.querySelectorAll('#chosen-history .what div')].every((d) => d.textContent.startsWith('shard 341:'))")
    p.check("the address keeps the choice", "location.hash === '#shard=341'")
    p.check("what is too small to be seen is shown larger", "document.getElementById('map').className.baseVal === 'large'")
    p.shot("chosen")
    p.click("#whole")
    p.press("Escape", 27)
    p.browser.eval("document.activeElement.blur()")
    p.press("Escape", 27)
    p.check("Escape lets go", "!@chosen!")
    p.browser.eval(f"{FENCE('Anhui')}.focus()")
    p.press("ArrowRight", 39)
    p.check("an arrow key goes to the fence beside", "['Jiangsu', 'Shanghai', 'Zhejiang'].includes(document.activeElement.fence?.name)")
    p.press("Enter", 13)
    p.check("Enter chooses it", "@chosen! && @chosen-title === document.activeElement.fence.name")
    p.press("+")
    p.check("plus makes the map larger", "Number(document.getElementById('map').getAttribute('viewBox').split(' ')[2]) < 700")
    p.shot("keyboard")
    before = p.browser.eval("document.getElementById('map').getAttribute('viewBox') + location.hash")
    for kind, x in (("mousePressed", 300), ("mouseMoved", 340), ("mouseMoved", 400), ("mouseReleased", 400)):
        p.browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=400, button="left", buttons=1, clickCount=1)
    p.check("dragging moves the map, by as much as the hand moved, and chooses nothing", DRAGGED(before))
    p.press("0")
    p.check("0 shows the whole map", "document.getElementById('map').getAttribute('viewBox').startsWith('0.00 0.00 1000.00')")
    p.check("one fence, one cell of the strip are stops of the Tab key", "document.querySelectorAll('.fence[tabindex=\"0\"]').length === 1 && document.querySelectorAll('.cell[tabindex=\"0\"]').length === 1")
    p.open(SCENES["calm"](), path="#shard=341")
    p.check("an address with a choice opens it, with its history", "@chosen-title === 'Shanghai' && document.querySelectorAll('#chosen-history > li').length === 4")
    p.open(SCENES["service"](), path="#shard=1024")
    p.check("a global service goes by its name", "@chosen-title === 'Global service users' && document.body.textContent.includes('1024 global service users')")
    p.check("and says how long its grant lasts", "@chosen-facts.includes('for 4.1 s more')")
    p.shot("service")


def moving(p):
    p.open(SCENES["calm"]())
    p.check("calm at first", "@says.startsWith('Calm')")
    p.service.scene = SCENES["move"]()
    p.check("the operation appears by itself", "@running.includes('Move 3 shards to sh') && @running-count === '1 operation'")
    p.check("it says what it waits for", "@running.includes('waits until sh has applied the FENCE of shard 407')")
    p.check("each shard's way", "@running.includes('407 Shandong: bj → sh') && @running.includes('on its way') && @running.includes('451 Henan: bj → sh') && @running.includes('1 given · 1 on its way · 1 waiting')")
    p.check("who and why", "@running.includes('li: bj is to be lighter')")
    p.check("the moving shard is striped", f"{FENCE('Shandong')}.style.fill.startsWith('url(') && {FENCE('Shandong')}.ariaLabel.includes('moving to sh')")
    p.check("the sentence says it", "@says === '1 shard on the way · 1 operation under way'")
    p.check("a node at an older map is told", "@zones.includes('1 at another map') && @zones.includes('12 requests waiting')")
    p.check("lag is told", "/lacks records:\\s+bj\\s1,284/.test(@zones)")
    p.shot("move-light")
    p.open(SCENES["move"](), theme="dark")
    p.check("dark: drawn", "document.querySelectorAll('.fence').length === 34")
    p.shot("move-dark")
    p.open(SCENES["move"](), width=390, height=844)
    p.check("on a phone: drawn, and nothing is wider than the window", "document.querySelectorAll('.fence').length === 34 && document.documentElement.scrollWidth <= 390")
    p.check("and every panel has its whole width, none lies on another", ONE_COLUMN)
    p.shot("move-phone", whole=True)
    p.shot("move-phone-first")


def lost(p):
    p.open(SCENES["lost"]())
    p.check("the sentence says which zone and how many shards", "@says.startsWith('Zone sh is lost · 4 shards have no owner')")
    p.check("lost shards are hatched and say so", f"{FENCE('Tibet')}.style.fill.startsWith('url(') && {FENCE('Tibet')}.ariaLabel.includes('nobody owns it since epoch 47')")
    p.check("those taken over have the survivor's colour", f"{FENCE('Shanghai')}.style.fill === {FENCE('Beijing')}.style.fill")
    p.check("what nobody else has is told by range", "@zones.includes('82 records that nobody else has, as far as it told: stream 0: 88,120 to 88,160 · stream 3: 51,002 to 51,042')")
    p.check("conflicts are told", "/conflicts\\s*7/.test(@zones)")
    p.check("the take-over says that it was forced, against what", "@running.includes('Take over from sh') && @running.includes('forced') && @running.includes('a router of sh was heard 2 s ago')")
    p.check("a node that is quiet is told", "@zones.includes('not heard for 3 s')")
    p.shot("lost-light")
    p.shot("lost-light-whole", whole=True)
    p.open(SCENES["lost"](), theme="dark")
    p.check("dark: drawn", "document.querySelectorAll('.fence').length === 34")
    p.shot("lost-dark")


def stopped(p):
    p.open(SCENES["stopped"]())
    p.check("drawn", "document.querySelectorAll('.fence').length === 34")
    p.check("a banner says that no map is issued, and why", "document.querySelector('.banner[data-level=\"bad\"]').innerText.includes('Stopped: no map is issued') && @banners.includes('a log of zone sh showed map 44')")
    p.check("the sentence begins with it", "@says.startsWith('No map is issued')")
    p.shot("stopped")
    p.service.scene = SCENES["calm"]()
    p.check("it goes when all is well", "!document.querySelector('.banner') && @says.startsWith('Calm')")


def backwards(p):
    p.open(SCENES["calm"]())
    p.check("calm at first", "@says.startsWith('Calm')")
    p.service.scene = SCENES["older"]()
    p.check("a map with a lower epoch than before is told loudly", "@banners.includes('shown map 41 before, and now map 39')")
    p.service.scene = SCENES["other"]()
    p.check("so is another map with the same epoch", "@banners.includes('shown another map 41 before')")


def token(p):
    scene = SCENES["calm"]()
    scene.token = "read-me"
    p.open(scene)
    p.check("it asks for a token", "@login! && @says === 'Waiting for a token' && document.activeElement.id === 'token'")
    p.note("without asking the service again and again", later(lambda: True, 2.5) and p.service.count("/v1/state") <= 2)
    p.shot("token")
    p.browser.call("Input.insertText", text="wrong")
    p.press("Enter", 13)
    p.check("a token that is refused is told, and another one asked for", "@login! && @login.includes('The token was refused') && !sessionStorage.getItem('ezone-token')")
    p.browser.call("Input.insertText", text="node-only")
    p.press("Enter", 13)
    p.check("a token with too small a role is told, and can be let go", "@banners.includes('403: this token has the role node') && @forget!")
    p.click("#forget")
    p.check("then another one is asked for", "@login! && !@forget! && !sessionStorage.getItem('ezone-token')")
    p.browser.call("Input.insertText", text="read-me")
    p.press("Enter", 13)
    p.check("with the right one the state is shown", "!@login! && @says.startsWith('Calm') && document.querySelectorAll('.fence').length === 34")
    p.check("it is kept in sessionStorage alone", "sessionStorage.getItem('ezone-token') === 'read-me' && localStorage.length === 0 && document.cookie === '' && !location.href.includes('read-me')")
    p.browser.call("Page.reload")
    p.check("and outlives a reload", "@says.startsWith('Calm')")
    scene.token = "another"
    p.check("a token that is withdrawn is told; the last picture is grey", "@login! && @login.includes('refused') && document.getElementById('main').dataset.picture === 'old'")


def unreachable(p):
    scene = SCENES["calm"]()
    p.open(scene)
    p.check("calm at first", "@says.startsWith('Calm') && document.querySelectorAll('.fence').length === 34")
    scene.mode = "down"
    p.check("it says that the service cannot be reached, and for how long", "/has not answered for \\d+ s \\(no connection\\)/.test(@banners)")
    p.check("the last picture stays, grey, and says how old it is", "document.getElementById('main').dataset.picture === 'old' && getComputedStyle(document.getElementById('main')).filter === 'grayscale(1)' && document.querySelectorAll('.fence').length === 34 && /\\d s old/.test(@banners)")
    p.check("the sentence does not claim that all is calm", "@says.startsWith('Unknown now; before: calm') && document.title.startsWith('(not reached)')")
    p.shot("unreachable")
    scene.mode = "ok"
    p.check("it comes back by itself", "!document.querySelector('.banner') && @says.startsWith('Calm') && document.getElementById('main').dataset.picture === 'live'")
    scene.mode = "silent"
    p.check("a service that accepts and says nothing is not reached either", "@banners.includes('no answer within 5 s')")
    p.open(Scene("unreachable", SCENES["calm"]().state, mode="down"))
    p.check("from the beginning: it says that nothing is known", "@says === 'Nothing is known yet' && @banners.includes('has not answered')")
    p.check("and claims nothing", "!@main!")
    p.shot("unreachable-from-start")


def faulty(p):
    scene = SCENES["calm"]()
    p.open(scene)
    p.check("calm at first", "@says.startsWith('Calm')")
    scene.mode = "fault"
    p.check("a fault is told in the service's words", "@banners.includes('503: the store is locked by another process') && document.getElementById('main').dataset.picture === 'old'")
    scene.mode = "nonsense"
    p.check("what is no JSON is told", "@banners.includes('something that is no JSON')")
    scene.mode = "other"
    p.check("what is no state is told", "@banners.includes('no epoch, zones and shards')")
    scene.mode = "ok"
    p.check("it comes back by itself", "!document.querySelector('.banner')")
    p.open(Scene("no fences", SCENES["calm"]().state))
    p.check("without fences the strip still shows every shard", "document.querySelectorAll('.cell').length === 34 && @no-map.includes('could not be read (500: no fences today)')")
    p.open(SCENES["bare"]())
    p.check("an empty map says what is not there", "@no-map.includes('This map has no fences') && @no-zones! && @no-audit! && @no-ended! && @says === 'The map has no zones'")
    p.shot("bare")


def hostile(p):
    p.browser.call("Page.setBypassCSP", enabled=True)  # the page's own care is looked at, not the policy that stands behind it
    p.open(SCENES["hostile"]())
    p.check("names are shown as the text that they are", "@zones.includes('<img src=x onerror=window.pwned=1>') && @cluster.includes('<script>window.pwned=2</script>')")
    p.check("the map is drawn, and chooses", "document.querySelectorAll('.fence').length === 34")
    p.browser.eval("document.querySelector('.fence').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    p.check("a fence's name is text, too", "@chosen-title.includes('<svg onload=window.pwned=3>')")
    p.browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=400, y=400)
    p.check("operations and audit are text", "@running.includes('<iframe') && @audit.includes('<b>bold</b>')")
    p.check("no element was made of it", "document.querySelectorAll('img, iframe, object, embed, b[onclick], link[href*=\"invalid\"], main a, main script').length === 0 && document.scripts.length === 1")
    p.check("no direction character is left", "!/[\\u202a-\\u202e\\u2066-\\u2069]/.test(document.body.innerText)")
    p.check("nothing is wider than the window", "document.documentElement.scrollWidth <= innerWidth")
    time.sleep(1.5)
    p.check("nothing of it was executed", "typeof window.pwned === 'undefined'")
    p.check("no banner: it is a state like others", "!document.querySelector('.banner')")
    p.shot("hostile", whole=True)
    p.browser.call("Page.setBypassCSP", enabled=False)
    for kind in ("wrong types", "nothing but nulls"):
        p.open(SCENES[kind]())
        p.check("values of wrong types are shown as well as can be", "@epoch === '41' && document.querySelectorAll('.zone').length > 0 && !document.querySelector('.banner')")


def large(p):
    p.open(SCENES["large"]())
    p.check("nothing is wider than the window", "document.documentElement.scrollWidth <= innerWidth")
    p.check("1,024 shards on map and strip, 15 zones", "document.querySelectorAll('.fence').length === 1024 && document.querySelectorAll('.cell').length === 1024 && document.querySelectorAll('.zone').length === 16")
    p.check("15 zones have 15 looks", "new Set([...document.querySelectorAll('#legend .swatch')].slice(0, 15).map((s) => s.style.background)).size === 15")
    p.check("the edges are no zone", "@zones.includes('edges') && @zones.includes('routers of no zone') && @zones-count === '15 of 15 up'")
    p.check("1,000 routers of an edge are bounded, the odd ones first", "@zones.includes('1,000 nodes') && document.querySelectorAll('.nodes tr').length < 200")
    p.check("an operation of 300 shards is bounded", "@running.includes('Evacuate zone-03') && @running.includes('and 290 more shards')")
    p.shot("large-light")
    p.shot("large-light-whole", whole=True)
    p.browser.eval("document.getElementById('older').click()")
    p.check("older changes are asked for, page by page, and shown as far as a list goes", "document.querySelectorAll('#audit > li').length === 200 && !@older!")
    p.browser.eval("document.querySelectorAll('#legend button')[9].click()")
    p.check("the legend lights one zone", "document.querySelectorAll('.fence.faint').length > 900 && document.querySelectorAll('.fence:not(.faint)').length > 30")
    p.shot("large-lit")
    p.open(SCENES["large"](), theme="dark")
    p.check("dark: drawn", "document.querySelectorAll('.fence').length === 1024")
    p.shot("large-dark")
    p.open(SCENES["large"](), width=390, height=844)
    p.check("on a phone nothing is wider than the window", "document.querySelectorAll('.fence').length === 1024 && document.documentElement.scrollWidth <= 390")
    p.check("and every panel has its whole width, none lies on another", ONE_COLUMN)
    p.shot("large-phone")


def patched(p):
    """What is drawn stays the same element from one second to the next."""
    p.open(SCENES["move"]())
    p.check("drawn", "document.querySelectorAll('.op').length > 0 && document.querySelectorAll('.fence').length === 34")
    p.browser.eval("window.before = [...document.querySelectorAll('.op, .zone, .fence, .cell, .rows > li')]; document.querySelector('.zone details').open = false; document.querySelector('.cell').focus()")
    asked = p.service.count("/v1/state")
    later(lambda: p.service.count("/v1/state") >= asked + 3)
    p.check("elements stay the same, closed details stay closed, focus stays", "window.before.every((n) => n.isConnected) && !document.querySelector('.zone details').open && document.activeElement.className.startsWith('cell')")
    p.service.scene = SCENES["burst"]()
    p.check("changes between two looks are asked for: none is left out", "[...document.querySelectorAll('#audit .at span')].map((s) => Number(s.textContent)).filter((n) => n > 41).length === 59")


# The panels that are shown: each at least 350 pixels wide, each below the one before it.
ONE_COLUMN = """(() => {
  const boxes = [...document.querySelectorAll('.panel')].filter((n) => n.checkVisibility()).map((n) => n.getBoundingClientRect()).sort((a, b) => a.top - b.top);
  return boxes.length >= 4 && boxes.every((b, i) => b.width >= 350 && (i === 0 || b.top >= boxes[i - 1].bottom));
})()"""


def DRAGGED(before):
    """The map's window went 100 pixels to the west; the address, which names the choice, is the same."""
    return f"""(([was, is]) => {{
      const [box, hash] = [(t) => t.split('#')[0].split(' ').map(Number), (t) => t.split('#')[1]], pixel = document.getElementById('map').getScreenCTM().a;
      return Math.abs((box(was)[0] - box(is)[0]) * pixel - 100) < 2 && Math.abs(box(was)[1] - box(is)[1]) < 1 && hash(was) === hash(is);
    }})([{json.dumps(before)}, document.getElementById('map').getAttribute('viewBox') + location.hash])"""


def FENCE(name):
    return f"[...document.querySelectorAll('.fence')].find((f) => f.fence.name === '{name}')"


def later(test, wait=0.0):
    """Whether `test` becomes true."""
    time.sleep(wait)
    until = time.monotonic() + LIMIT_S
    while not test() and time.monotonic() < until:
        time.sleep(0.05)
    return test()


# ---- colours -------------------------------------------------------------------------------------------------------------

# Texts and what they stand on.
READ = (
    ("--ink", "--panel"), ("--soft", "--panel"), ("--soft", "--inset"), ("--warn", "--inset"), ("--warn", "--warn-bg"), ("--bad", "--inset"),
    ("--bad", "--bg"), ("--ok", "--inset"), ("--accent", "--panel"), ("--bad-ink", "--bad-bg"),
)  # fmt: skip

# Distance in CIE L*a*b* (1976); colour vision of dichromats after Machado, Oliveira, Fernandes (2009), severity 1.0, in linear RGB.
APART = 12.0
EYES = {
    "most eyes": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "eyes without red (protanopia)": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "eyes without green (deuteranopia)": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "eyes without blue (tritanopia)": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


def lab(rgb):
    to_xyz = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
    xyz = [sum(m * v for m, v in zip(row, rgb)) for row in to_xyz]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (v / w for v, w in zip(xyz, (0.95047, 1, 1.08883))))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def nearest(colours, matrix):
    seen = []
    for colour in colours:
        rgb = linear(colour)
        seen.append(lab([min(1, max(0, sum(m * v for m, v in zip(row, rgb)))) for row in matrix]))
    pairs = [(sum((a - b) ** 2 for a, b in zip(seen[i], seen[j])) ** 0.5, (i, j)) for i in range(len(seen)) for j in range(i)]
    return min(pairs)


def contrast(ink, ground):
    """WCAG 2.2's contrast ratio."""
    light = [sum(m * v for m, v in zip((0.2126, 0.7152, 0.0722), linear(c))) for c in (full(ink), full(ground))]
    return (max(light) + 0.05) / (min(light) + 0.05)


def full(colour):
    return colour if len(colour) >= 7 else "#" + "".join(c * 2 for c in colour[1:4])


# ---- all of it -----------------------------------------------------------------------------------------------------------

ALL = [calm, palette, choosing, moving, lost, stopped, backwards, token, unreachable, faulty, hostile, large, patched]


def local(url, origin):
    return url.startswith((origin + "/", "data:", "about:"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", help="a directory for pictures; made if it is missing")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    parser.add_argument("--limit", type=float, default=60, help="seconds that a check may take to become true")
    parser.add_argument("--only", choices=[c.__name__ for c in ALL], action="append", help="these checks alone")
    arguments = parser.parse_args()
    global LIMIT_S
    LIMIT_S = arguments.limit
    if not arguments.chromium or not shutil.which(arguments.chromium):
        print("NOT RUN: chromium is missing")
        return 77
    if arguments.shots:
        os.makedirs(arguments.shots, exist_ok=True)
    service, outside = Service(os.path.join(HERE, "../../console")), Outside()
    browser = Browser(arguments.chromium, outside)
    try:
        browser.open()
        page = Page(browser, service, arguments.shots)
        for checks in ALL:
            if not arguments.only or checks.__name__ in arguments.only:
                checks(page)
        service.scene = Scene("all of it", {})
        urls = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        far = {url for url in urls if not local(url, service.origin)}
        page.note(f"each of {len(urls)} requests of the page went to its service", urls and not far, lambda: str(far))
        world = [line for line in outside.asked if not BROWSERS_OWN.search(line)]
        page.note("nothing that the page could have asked for left this machine", not world, lambda: str(world[:5]))
        known = {"/", "/console.js", "/console.css", "/v1/state", "/v1/fences", "/v1/audit"}
        page.note("only the page's own three files, state, fences and audit were asked for", service.ever <= known, lambda: str(service.ever - known))
        thrown = [e["params"]["exceptionDetails"]["exception"].get("description") for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
        page.note("the page's script threw nothing", not thrown, lambda: str(thrown[:3]))
        logged = [e["params"]["entry"]["text"] for e in browser.events if e["method"] == "Log.entryAdded"]
        broken = [text for text in logged if "Content Security" in text]
        page.note("the strict policy was never broken", not broken, lambda: str(broken[:3]))
    finally:
        browser.close()
        service.close()
    print(f"{page.held} hold, {len(page.failed)} do not")
    return 1 if page.failed or page.held == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
