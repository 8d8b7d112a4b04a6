"""The translations: as complete as the server's own texts, true to the names in them, and what the browser shows."""

import re

import pytest

from front_end import first_page
from paths import ROOT

LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
# What no language changes: emphasis, and words with a digit, with two capitals, or with / _ : . in front of letters.
WORD = re.compile(r"\(\w+:[\d.]+\)|[\w./:-]+")
TERM = re.compile(r"\(|\d|[A-Z].*[A-Z]|[./_:]\w")
# The front end takes these for its own syntax.
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
    """All texts of our nodes, by where they stand in a translation."""
    return {(name, *place): text for name, node in ours.items() for place, text in texts(node)}


@pytest.fixture(scope="module")
def i18n(client):
    return client.get("/i18n")


@pytest.fixture(params=LANGUAGES)
def translated(request, i18n):
    """The node texts of a language as the server gives them to the front end, by where they stand."""
    return dict(leaves(i18n[request.param]["nodeDefs"]))


def declared(node):
    """Name → options of a node's inputs."""
    sections = node["input"].values()
    return {name: options for section in sections for name, (_, options) in section.items()}


def texts(node):
    yield ("display_name",), node["display_name"]
    yield ("description",), node["description"]
    for name, options in declared(node).items():
        yield ("inputs", name, "name"), name
        yield ("inputs", name, "tooltip"), options["tooltip"]
    outputs = zip(node["output"], node["output_name"], node["output_tooltips"], strict=True)
    for number, (kind, name, tooltip) in enumerate(outputs):
        yield ("outputs", str(number), "tooltip"), tooltip
        if name != kind:  # the front end has words of its own for types
            yield ("outputs", str(number), "name"), name


def leaves(tree, place=()):
    for key, below in tree.items():
        if isinstance(below, dict):
            yield from leaves(below, (*place, key))
        else:
            yield (*place, key), below


def prose(english):
    """The texts that are more than an input's name."""
    return {place: text for place, text in english.items() if place[-1] != "name"}


def test_every_text_is_translated_and_nothing_else(translated, english):
    assert translated.keys() == english.keys()
    assert all(text.strip() and not SYNTAX.search(text) for text in translated.values())
    told = {place: text for place, text in prose(english).items() if place[-1] != "display_name"}
    assert [place for place, text in told.items() if translated[place] == text] == []


def test_names_of_files_models_and_types_stay(translated, english):
    for place, text in prose(english).items():
        points = re.sub(r"(?<=\d),(?=\d)", ".", translated[place])
        for word in (word.rstrip(".:") for word in WORD.findall(text)):
            term = word.removesuffix("s") if word.isalnum() else word  # ControlNets
            assert term in points or not TERM.search(word), place


def test_options_that_a_tooltip_explains_keep_their_names(translated, ours):
    explained = 0
    for node, name, options in ((n, i, o) for n in ours for i, o in declared(ours[n]).items()):
        for option in options.get("options", []):
            word = re.escape(option.split()[0])
            if re.search(rf"\b{word}:", options["tooltip"], re.IGNORECASE):
                explained += 1
                assert re.search(rf"\b{word}\s?[:\uff1a]", translated[node, "inputs", name, "tooltip"])
    assert explained


def test_a_node_that_a_text_names_is_named_as_it_is_shown(translated, english, ours):
    named = 0
    for place, text in prose(english).items():
        for node in ours:
            if place[0] != node and ours[node]["display_name"] in text:
                named += 1
                assert translated[node, "display_name"] in translated[place], place
    assert named


@pytest.mark.parametrize("locale", ["fr", "zh"])
def test_the_front_end_shows_them(locale, client, server, browser, i18n, ours):
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
