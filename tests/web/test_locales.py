"""The translations are complete, keep all names of files, models and options, and are shown by the front end."""

import re

import pytest

from front_end import first_page
from paths import ROOT

LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
# Terms that no language changes: emphasis, and words with a digit, two capitals, or one of / _ : . before a letter.
WORD = re.compile(r"\(\w+:[\d.]+\)|[\w./:-]+")
TERM = re.compile(r"\(|\d|[A-Z].*[A-Z]|[./_:]\w")
# The front end treats these characters as its own syntax.
SYNTAX = re.compile(r"[{}|@]")
CREATED = """(type) => {
  const node = LiteGraph.createNode(type);
  const label = (of) => [of.name, of.localized_name ?? of.label];
  return [node.title, Object.fromEntries([...node.inputs, ...(node.widgets ?? [])].map(label))];
}"""


@pytest.fixture(scope="module")
def ours(object_info):
    return {n: node for n, node in object_info.items() if node["python_module"] == "custom_nodes.llm4gen"}


@pytest.fixture(scope="module")
def english(ours):
    """key path in a translation: text, for all texts of our nodes."""
    return {(name, *path): text for name, node in ours.items() for path, text in texts(node)}


@pytest.fixture(scope="module")
def i18n(client):
    return client.get("/i18n")


@pytest.fixture(params=LANGUAGES)
def translated(request, i18n):
    """key path: text, for a language's texts of nodes as the server sends them to the front end."""
    return dict(leaves(i18n[request.param]["nodeDefs"]))


def declared(node):
    """name: options, for the inputs that a node shows; output nodes have hidden ones too."""
    sections = (node["input"].get(need, {}) for need in ("required", "optional"))
    return {name: options for section in sections for name, (_, options) in section.items()}


def texts(node):
    """Pairs of key path and text that a translation of the node must have."""
    yield ("display_name",), node["display_name"]
    yield ("description",), node["description"]
    for name, options in declared(node).items():
        yield ("inputs", name, "name"), name
        yield ("inputs", name, "tooltip"), options["tooltip"]
    outputs = zip(node["output"], node["output_name"], node["output_tooltips"], strict=True)
    for number, (kind, name, tooltip) in enumerate(outputs):
        yield ("outputs", str(number), "tooltip"), tooltip
        if name != kind:  # an output named after its type is translated by the front end
            yield ("outputs", str(number), "name"), name


def leaves(tree, path=()):
    """Pairs of key path and value of a nested dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def sentences(english):
    """All texts except the names of inputs and outputs."""
    return {path: text for path, text in english.items() if path[-1] != "name"}


def test_every_text_is_translated_and_nothing_else(translated, english):
    assert translated.keys() == english.keys()
    assert all(text.strip() and not SYNTAX.search(text) for text in translated.values())
    without_titles = {path: text for path, text in sentences(english).items() if path[-1] != "display_name"}
    assert [path for path, text in without_titles.items() if translated[path] == text] == []


def test_names_of_files_models_and_types_are_not_translated(translated, english):
    for path, text in sentences(english).items():
        with_points = re.sub(r"(?<=\d),(?=\d)", ".", translated[path])
        for word in (word.rstrip(".:") for word in WORD.findall(text)):
            term = word.removesuffix("s") if word.isalnum() else word  # "ControlNets" is a plural
            assert term in with_points or not TERM.search(word), path


def test_options_that_a_tooltip_explains_keep_their_names(translated, ours):
    explained = 0
    for node, name, options in ((n, i, o) for n in ours for i, o in declared(ours[n]).items()):
        for option in options.get("options", []):
            word = re.escape(option.split()[0])
            if re.search(rf"\b{word}:", options["tooltip"], re.IGNORECASE):
                explained += 1
                assert re.search(rf"\b{word}\s?[:\uff1a]", translated[node, "inputs", name, "tooltip"])
    assert explained


def test_a_node_that_a_text_names_has_its_translated_title_there(translated, english, ours):
    named = 0
    for path, text in sentences(english).items():
        for node in ours:
            if path[0] != node and ours[node]["display_name"] in text:
                named += 1
                assert translated[node, "display_name"] in translated[path], path
    assert named


@pytest.mark.parametrize("locale", ["fr", "zh"])
def test_the_front_end_shows_the_translated_titles_and_inputs(locale, client, server, browser, i18n, ours):
    client.post("/settings/Comfy.Locale", locale)
    try:
        with first_page(server.url, browser) as page:
            shown = {node: page.evaluate(CREATED, node) for node in ours}
    finally:
        client.post("/settings/Comfy.Locale", "en")
    names = i18n[locale]["nodeDefs"]
    for node, (title, labels) in shown.items():
        assert title == names[node]["display_name"]
        assert labels == {name: text["name"] for name, text in names[node]["inputs"].items()}
