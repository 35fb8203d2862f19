"""Task `icd10`: a diagnosis of ICD-10-CM → the chapter of the classification it is in, as one or two words.

The split is by three-character category: what is held out is a disease the model saw no wording of.
"""

import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from adapters.demo.examples import SEED, Row, Task, drop_conflicts, drop_near_duplicates
from adapters.demo.wheels import Wheel, read_member

MEMBER = "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"
WHEEL = Wheel("simple-icd-10-cm", "1.5.0", "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42")

# Chapter 22 (codes for special purposes) is left out: it has two categories.
LABELS = {
    "1": "infection",
    "2": "neoplasm",
    "3": "blood",
    "4": "metabolic",
    "5": "mental",
    "6": "nervous",
    "7": "eye",
    "8": "ear",
    "9": "circulatory",
    "10": "respiratory",
    "11": "digestive",
    "12": "skin",
    "13": "musculoskeletal",
    "14": "genitourinary",
    "15": "pregnancy",
    "16": "newborn",
    "17": "congenital",
    "18": "symptom",
    "19": "injury",
    "20": "external cause",
    "21": "health status",
}
# Left and right, upper and lower: the same diagnosis for a classifier.
NEAR_DUPLICATE = 0.7
# Some categories list a thousand variants; a few of each suffice, and comparing all pairs would take minutes.
MAX_PER_CATEGORY = 10


def load(wheel: Path) -> list[Row]:
    """Rows of every chapter but the last."""
    return rows_from(read_member(wheel, MEMBER))


def rows_from(xml: bytes) -> list[Row]:
    """Rows of a tabular list in the CDC's XML form: chapter / section / diag, with diags nested in diags."""
    rows = []
    for chapter in ElementTree.fromstring(xml).iter("chapter"):
        label = LABELS.get(chapter.findtext("name", ""))
        for category in chapter.findall("section/diag") if label else []:
            rows += _category_rows(category, str(label))
    return drop_near_duplicates(drop_conflicts(rows), NEAR_DUPLICATE)


def _category_rows(category: ElementTree.Element, label: str) -> list[Row]:
    group = category.findtext("name", "")
    texts = sorted({" ".join(diag.findtext("desc", "").split()) for diag in category.iter("diag")} - {""})
    random.Random(f"{SEED}/{group}").shuffle(texts)
    return [Row(text, label, group) for text in texts[:MAX_PER_CATEGORY]]


TASK = Task("icd10", "Which chapter of the disease classification is this diagnosis in?", WHEEL, load)
