"""The real front end as a person uses it: a page, a file dropped on the canvas, Run, and what it complains of."""

import base64
import re
from contextlib import contextmanager, suppress

from pictures.browser import open_page, wait_for_canvas
from sandbox.origins import PUBLISHED

DROP = """([name, type, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  return dataTransfer;
}"""
FAULTY = "() => app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type).sort()"
UNREGISTERED = "app.graph.nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type)"
PROMPT = "async () => (await app.graphToPrompt()).output"
FIND = "(type) => app.graph.nodes.filter((node) => node.type === type).map((node) => node.id)"
SET = "([id, name, value]) => { app.canvas.graph.getNodeById(id).widgets.find((w) => w.name === name).value = value; }"
# What the pack says under a node of the open graph, line by line; null for nothing.
NOTE = """(id) => {
  const note = app.canvas.graph.getNodeById(id)?.widgets?.find((widget) => widget.name === "llm4gen_note");
  return note ? [...note.element.querySelectorAll("p")].map((line) => line.textContent) : null;
}"""
NO_NOTE = f"(id) => ({NOTE})(id) === null"
NOTED = f"([id, count]) => {{ const lines = ({NOTE})(id); return lines?.length === count && lines; }}"
SAYS = f"([id, lines]) => JSON.stringify(({NOTE})(id)) === JSON.stringify(lines)"
VEIL = ".p-blockui-mask"
PATIENCE = 1500  # fifths of a second that a run may take
# Says in `window.ended` when the next call of a method of the front end's `app` has ended.
SAYS_ITS_END = """(name) => {
  const method = app[name];
  window.ended = false;
  app[name] = async function (...inputs) {
    delete app[name];
    try {
      return await method.apply(this, inputs);
    } finally {
      window.ended = true;
    }
  };
}"""
# The same for the next run, once the page has been told of its end, and so of all that came before. The server tells it
# only if the page had its id when Run was pressed.
RUN_SAYS_ITS_END = """async () => {
  const { api } = await import("/scripts/api.js");
  while (!api.clientId) await new Promise((resolve) => setTimeout(resolve, 50));
  window.ended = false;
  for (const kind of ["execution_success", "execution_error", "execution_interrupted"]) {
    api.addEventListener(kind, () => { window.ended = true; }, { once: true });
  }
}"""
FRAMES = """(count) => new Promise((done) => {
  const next = () => (count-- > 0 ? requestAnimationFrame(next) : done());
  next();
})"""


@contextmanager
def first_page(url, browser, **settings):
    """The front end in a browser of its own. One at a time: Playwright takes no second in the same thread."""
    with open_page(browser) as page:
        prefer(page, settings)
        yield ready(page, url)


@contextmanager
def fresh_page(page, url, **settings):
    """Another person's front end beside an open page: the same browser, nothing remembered."""
    with page.context.browser.new_page(viewport=page.viewport_size) as fresh:
        prefer(fresh, settings)
        yield ready(fresh, url)


def prefer(page, settings):
    """Settings of the front end for this page alone: the server, which others use too, does not hear of them, nor of
    what the page keeps there by itself, such as an open panel."""

    def answer(route):
        if route.request.method == "GET":
            route.fulfill(json=route.fetch().json() | settings)
        else:
            route.fulfill(json=None)

    page.route(re.compile(r"/api/settings\b"), answer)


def ready(page, url):
    """Opens the front end, with nothing done in it yet; `page.complaints` gathers what its console says."""
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(f"uncaught: {error}"))
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    wait_for_canvas(page, url)
    # The front end itself asks for files that a fresh user does not have; the pack's part starts here.
    page.wait_for_load_state("networkidle")
    lift_veil(page)
    ours = [text for text in page.complaints if re.search("llm4gen|uncaught", text, re.IGNORECASE)]
    assert ours == []
    page.complaints.clear()
    return page


@contextmanager
def until_ended(page, method):
    """Waits at the block's end until a method of the front end's `app`, which the block starts, has ended."""
    page.evaluate(SAYS_ITS_END, method)
    yield
    page.wait_for_function("ended")


def let_pass(page, milliseconds):
    """Waits in the page's own time: what it does in that time has been done, also if it was held up meanwhile."""
    page.evaluate("(time) => new Promise((done) => setTimeout(done, time))", milliseconds)


def draw(page):
    """Waits until the page has measured what it shows, grown its nodes to that size and drawn them."""
    page.evaluate(FRAMES, 3)


def refresh(page):
    """Presses R on the canvas and waits until the front end and the pack know the server's files anew.

    Without the wait, that would be true already where a former test had a file of the same name, and the report would
    come in the middle of the test.
    """
    page.mouse.move(1400, 900)
    with until_ended(page, "refreshComboInNodes"):
        page.keyboard.press("r")


def drop(page, file, graph):
    """Drops a file on the canvas and waits for the graph that it should bring, by its id.

    The front end looks for missing files after the graph is there, and what a test changes then may come before or
    after that; so its end is waited for.
    """
    kind = {".json": "application/json", ".png": "image/png"}[file.suffix]
    data = page.evaluate_handle(DROP, [file.name, kind, base64.b64encode(file.read_bytes()).decode()])
    with until_ended(page, "loadGraphData"):
        for event in ("dragover", "drop"):
            page.dispatch_event(
                "#graph-canvas", event, {"dataTransfer": data, "clientX": 700, "clientY": 600}
            )
    page.wait_for_function("(id) => app.graph.id === id && app.graph.nodes.length > 0", arg=graph)
    lift_veil(page)
    draw(page)


def lift_veil(page):
    """Waits until nothing covers the page: it is veiled while the front end loads.

    The veil goes with an animation, whose end a busy machine may miss; it would then stay for good. Told of
    the end while it goes by itself, the front end removes it twice, which is an error.
    """
    from playwright.sync_api import TimeoutError  # noqa: PLC0415 -- where it is not, its tests are skipped

    page.wait_for_function(f"!document.querySelector('{VEIL}:not(.p-overlay-mask-leave)')")
    with suppress(TimeoutError):
        page.wait_for_function(f"!document.querySelector('{VEIL}')", timeout=10_000)
        return
    page.locator(VEIL).evaluate_all(
        "(veils) => veils.forEach((v) => v.dispatchEvent(new Event('animationend')))"
    )
    page.wait_for_function(f"!document.querySelector('{VEIL}')")


def says(page, node, *lines):
    """Waits until that, and no more, stands under a node."""
    page.wait_for_function(SAYS, arg=[node, list(lines)])


def noted(page, node, count):
    """Waits until that many lines stand under a node, and returns them as they stood then."""
    return page.wait_for_function(NOTED, arg=[node, count]).json_value()


def run(page, client):
    """Presses Run and waits until the page knows of the end, too; what the server's history says of it."""
    before = client.get("/history").keys()
    page.evaluate(RUN_SAYS_ITS_END)
    page.get_by_test_id("queue-button").click()
    for _ in range(PATIENCE):
        if done := client.get("/history").keys() - before:
            (name,) = done
            page.wait_for_function("ended")
            return client.get(f"/history/{name}")[name]
        assert not page.get_by_test_id("error-overlay-see-errors").is_visible(), page.evaluate(FAULTY)
        page.wait_for_timeout(200)
    raise AssertionError("Run was pressed, but the server has nothing to show for it.")


def assert_no_warnings(page):
    text = page.locator("body").inner_text().lower()
    assert [w for w in ("missing node", "missing input", "required input", "unknown node") if w in text] == []
    assert_no_complaints(page)


def assert_no_complaints(page):
    """The front end asks for the size of each missing file at its address, also for the workflow that it opens first,
    and the refusals arrive whenever they do."""
    addresses = ["/Comfy-Org/", *(url for url, _ in PUBLISHED.values())]
    complaints = [text for text in page.complaints if not any(url in text for url in addresses)]
    assert complaints == [], complaints
