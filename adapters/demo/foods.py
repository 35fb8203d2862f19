"""Task `foods`: the description of a food in USDA FoodData Central → its USDA food group.

Descriptions come in long series ("Beef, chuck, blade roast, ..."). The series, that is the first two parts without
order, number or punctuation, is the group that stays on one side; near-identical descriptions are dropped before.
"""

import csv
import gzip
import io
import re
from pathlib import Path

from adapters.demo.examples import Row, Task, drop_conflicts, drop_near_duplicates
from adapters.demo.wheels import Wheel, read_member

MEMBER = "ingredient_parser/en/data/fdc_ingredients.csv.gz"
WHEEL = Wheel("ingredient-parser-nlp", "2.9.1", "8e65c9073b641be1075c6844589dbb0c79269f9eb421387d81dc47beef9b655e")

# The food groups with at least 300 descriptions, in short.
LABELS = {
    "Baked Products": "baked goods",
    "Beef Products": "beef",
    "Beverages": "beverages",
    "Dairy and Egg Products": "dairy and egg",
    "Fruits and Fruit Juices": "fruit",
    "Lamb, Veal, and Game Products": "lamb and game",
    "Legumes and Legume Products": "legumes",
    "Pork Products": "pork",
    "Poultry Products": "poultry",
    "Sweets": "sweets",
    "Vegetables and Vegetable Products": "vegetables",
}
NEAR_DUPLICATE = 0.8
MAX_CHARS = 200


def load(wheel: Path) -> list[Row]:
    """Rows of the large food groups."""
    return rows_from(gzip.decompress(read_member(wheel, MEMBER)).decode("utf-8"))


def rows_from(table: str) -> list[Row]:
    """Rows of a CSV table with the columns `description` and `category`."""
    rows = []
    for line in csv.DictReader(io.StringIO(table)):
        text = " ".join(line["description"].split())
        if line["category"] in LABELS and len(text) <= MAX_CHARS:
            rows.append(Row(text, LABELS[line["category"]], series(text)))
    return drop_near_duplicates(drop_conflicts(rows), NEAR_DUPLICATE)


def series(description: str) -> str:
    """The first two comma-separated parts as a sorted set of words in the singular."""
    words = re.findall(r"[a-z]+", " ".join(description.lower().split(",")[:2]))
    return " ".join(sorted({singular(word) for word in words}))


def singular(word: str) -> str:
    """Potatoes, peaches, berries, apples: near enough for telling series apart."""
    word = re.sub(r"ies$", "y", word)
    return re.sub(r"(?<=o)es$|(?<=[cs]h)es$|(?<=[a-z]{2})s$", "", word)


TASK = Task("foods", "Which food group does this description belong to?", WHEEL, load)
