"""Drives the page of `cn-clip serve` in headless Chromium through chromedriver.

Usage: browser.py URL PICTURE DIRECTORY. Fails if the page does not show what it should, or if the
browser's console has an error. Screenshots are written to DIRECTORY. Needs only the standard library.
"""

import base64
import json
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER = "\ue007"
RIGHT = "\ue014"


class Browser:
    """A session of the WebDriver protocol."""

    def __init__(self, width, height, directory):
        self.directory = directory
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
        )
        for line in self.driver.stdout:
            if "started successfully on port" in line:
                port = line.strip().rstrip(".").split()[-1]
                self.base = "http://127.0.0.1:" + port
                break
        options = {
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--lang=zh-CN",
                f"--window-size={width},{height}",
            ],
            "prefs": {"intl.accept_languages": "zh-CN"},
        }
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        answer = self.request(
            "POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}
        )
        self.base += "/session/" + answer["sessionId"]

    def request(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {error.read().decode()}") from None

    def open(self, url):
        self.request("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        return self.request("POST", "/execute/sync", {"script": script, "args": arguments})

    def find(self, selector):
        found = self.request(
            "POST", "/element", {"using": "css selector", "value": selector}
        )
        return found[ELEMENT]

    def click(self, selector):
        self.request("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector, text):
        self.request("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, key):
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.request(
            "POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]}
        )

    def wait(self, what, script, *arguments):
        for _ in range(600):
            value = self.run(script, *arguments)
            if value:
                return value
            time.sleep(0.1)
        self.screenshot(self.directory / "failed.png")
        raise SystemExit(f"the page does not show {what}")

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.request("GET", "/screenshot")))

    def size(self, width, height):
        # A window has no smaller width than 500: the page's own width is what counts.
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)

    def devtools(self, command, parameters):
        body = {"cmd": command, "params": parameters}
        return self.request("POST", "/goog/cdp/execute", body)

    def errors(self):
        log = self.request("POST", "/se/log", {"type": "browser"})
        return [entry for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def close(self):
        self.request("DELETE", "")
        self.driver.terminate()
        self.driver.wait()


HITS = "return document.querySelectorAll('#hits .hit').length"
SHOWN = """
const pictures = [...document.querySelectorAll('#hits img')];
return pictures.length === Number(arguments[0])
    && pictures.every(picture => !picture.complete || picture.naturalWidth > 0)
    && pictures.some(picture => picture.complete) && !document.querySelector('.busy');
"""
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), char => char.charCodeAt(0));
const file = new File([bytes], 'dropped.jpg', { type: arguments[1] });
const data = new DataTransfer();
data.items.add(file);
for (const kind of ['dragenter', 'dragover', 'drop']) {
    document.getElementById('main').dispatchEvent(
        new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
}
"""


def expect(condition, what):
    if not condition:
        raise SystemExit(f"the page: {what}")


def search(browser, directory):
    browser.press("/")
    browser.type("#q", "红色的苹果" + ENTER)
    browser.wait("twelve pictures for a query", SHOWN, 12)
    title = browser.run("return document.getElementById('query-title').textContent")
    expect(title == "红色的苹果", f"the title is {title}")
    scores = browser.run(
        "return [...document.querySelectorAll('#hits .score')].map(node => Number(node.textContent))"
    )
    expect(scores == sorted(scores, reverse=True), f"scores are out of order: {scores}")
    expect("q=" in browser.run("return location.hash"), "the address does not name the query")
    browser.screenshot(directory / "1-search.png")
    browser.run("const k = document.getElementById('k'); k.value = 24; k.onchange();")
    browser.wait("twenty-four pictures", SHOWN, 24)
    browser.click("#hits li:nth-child(2) .hit")
    browser.wait("pictures similar to a hit", SHOWN, 24)
    browser.wait(
        "the picture searched for",
        "return !document.getElementById('query-image').hidden && location.hash === ''",
    )


def search_by_picture(browser, picture, directory):
    browser.run(DROP, picture, "image/jpeg")
    browser.wait(
        "pictures similar to the dropped one",
        "return document.getElementById('query-title').textContent === '与上传的图片相似'",
    )
    browser.wait("their pictures", SHOWN, 24)
    expect(browser.run("return document.getElementById('veil').hidden"), "the veil stays")
    browser.screenshot(directory / "2-picture.png")


def classify(browser, picture, directory):
    # By the keyboard: the tabs are one stop, arrows choose.
    browser.run("document.getElementById('tab-search').focus()")
    browser.press(RIGHT)
    expect(not browser.run("return document.getElementById('classify').hidden"), "no second tab")
    browser.run("document.getElementById('labels').value = ''")
    browser.type("#labels", "苹果\n香蕉\n汽车\n猫")
    browser.run(DROP, picture, "image/jpeg")
    rows = browser.wait(
        "four classes",
        """const rows = [...document.querySelectorAll('#classes li')];
        return rows.length === 4 && rows.map(row => row.textContent)""",
    )
    shares = [float(row.split()[0].lstrip("苹果香蕉汽车猫")) for row in rows]
    expect(abs(sum(shares) - 100) < 0.3, f"probabilities do not add up: {rows}")
    expect(shares == sorted(shares, reverse=True), f"classes are out of order: {rows}")
    browser.run("document.getElementById('template').value = '{}的图片'")
    browser.click("#classify-form .go")
    browser.wait("an answer", "return !document.querySelector('.busy')")
    browser.screenshot(directory / "3-classify.png")


def look(browser, directory):
    browser.click("#lang")
    button = browser.run("return document.querySelector('#classify-form .go').textContent")
    expect(button == "Classify", f"the button says {button} in English")
    browser.click("#theme")
    browser.click("#tab-search")
    browser.screenshot(directory / "4-dark-english.png")
    browser.size(375, 780)
    browser.run("scrollTo(0, 0)")
    overflow = browser.run("return document.documentElement.scrollWidth > innerWidth")
    expect(not overflow, "it is wider than a telephone")
    browser.screenshot(directory / "5-telephone-dark.png")
    browser.click("#theme")
    browser.click("#lang")
    browser.screenshot(directory / "6-telephone.png")
    browser.click("#tab-classify")
    browser.screenshot(directory / "7-telephone-classify.png")
    unnamed = browser.run(
        """const name = node => node.getAttribute('aria-label') || node.textContent.trim()
            || node.labels?.[0]?.textContent || node.title;
        return [...document.querySelectorAll('button, input, textarea, select, a')]
            .filter(node => !name(node)).map(node => node.outerHTML)"""
    )
    expect(not unnamed, f"controls without a name: {unnamed}")


def main():
    url, picture, directory = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    picture = base64.b64encode(pathlib.Path(picture).read_bytes()).decode()
    browser = Browser(1200, 900, directory)
    try:
        browser.open(url)
        browser.wait(
            "how many pictures there are",
            "return /\\d+ 张图片/.test(document.getElementById('about').textContent)",
        )
        browser.screenshot(directory / "0-start.png")
        search(browser, directory)
        search_by_picture(browser, picture, directory)
        classify(browser, picture, directory)
        look(browser, directory)
        errors = browser.errors()
        expect(not errors, f"errors in the console: {json.dumps(errors, ensure_ascii=False)}")
        # A refusal is shown and not swallowed.
        browser.click("#tab-search")
        browser.run(DROP, base64.b64encode(b"no picture").decode(), "image/png")
        browser.wait(
            "the error of a broken picture",
            "return !document.getElementById('search-error').hidden",
        )
        browser.screenshot(directory / "8-error.png")
    finally:
        browser.close()
    print(f"the page works; screenshots are in {directory}")


main()
