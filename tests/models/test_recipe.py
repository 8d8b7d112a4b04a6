"""Recipes: what an adapter's metadata says about the input of its LLM."""

import json

import pytest

from llm4gen.models.errors import WrongRecipe
from llm4gen.models.recipe import Recipe, recipe_from_metadata


def recipe_of(**entries):
    """The recipe of an adapter whose metadata has these entries."""
    return recipe_from_metadata({"llm4gen": json.dumps(entries)})


def test_a_file_without_a_recipe_gets_the_published_one():
    assert recipe_from_metadata({}) == recipe_from_metadata({"format": "pt"}) == Recipe()
    assert Recipe().prompt("a cat") == "pre a cat"
    assert (Recipe().tokens, Recipe().padding, Recipe().layer, Recipe().heads) == (256, "keep", -1, 8)


def test_entries_replace_those_of_the_published_recipe():
    recipe = recipe_of(template="<s>{text}</s>", tokens=128, padding="drop", layer=-2)
    assert recipe == Recipe(template="<s>{text}</s>", tokens=128, padding="drop", layer=-2)


def test_the_system_text_is_put_where_the_template_says():
    recipe = recipe_of(template="[{system}] {text} [{system}]", system="Look closely.")
    assert recipe.prompt("a {system} cat") == "[Look closely.] a {system} cat [Look closely.]"
    assert recipe.weights_in_prompt([2.0]) == [1.0] * len("[Look closely.] ") + [2.0] + [1.0] * len(
        " [Look closely.]"
    )


def test_braces_in_a_prompt_are_left_as_they_are():
    assert Recipe().prompt("{a|b} {text} {0.__class__}") == "pre {a|b} {text} {0.__class__}"


@pytest.mark.parametrize(
    ("entries", "culprit"),
    [
        ({"template": "no placeholder"}, "no placeholder"),
        ({"tokens": 0}, "0"),
        ({"tokens": "256"}, "256"),
        ({"tokens": True}, "True"),
        ({"padding": "left"}, "left"),
        ({"heads": 0}, "0"),
        ({"colour": 1}, "colour"),
        ({"system": "Look closely."}, "Look closely"),
        ({"template": "{system} {text}"}, "{system}"),
        ({"template": "{system} {text}", "system": "{text}"}, "system text"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_and_the_entry_is_named(entries, culprit):
    with pytest.raises(WrongRecipe, match=culprit):
        recipe_of(**entries)


@pytest.mark.parametrize("text", ["not json", "[1]"])
def test_metadata_that_is_not_a_recipe_is_refused(text):
    with pytest.raises(WrongRecipe):
        recipe_from_metadata({"llm4gen": text})
