"""Settings: presets fill in what is not given, and every part of the method has its switch."""

import pytest
from pydantic import ValidationError

from adapters.settings import PRESETS, LearnSettings


def test_the_default_shares_nothing_and_routes_in_closed_form() -> None:
    """What measures best (docs/log.md); the shipped bank was learned with it."""
    settings = LearnSettings()
    assert (settings.preset, settings.sharing, settings.gate) == ("seta", "off", "analytic")
    assert not settings.divergence and not settings.adaptive_budget
    assert settings.late_start == 0.25 and settings.keep == 1


def test_the_papers_preset_switches_every_part_on() -> None:
    settings = LearnSettings(preset="paper")
    assert (settings.sharing, settings.gate, settings.expansion) == ("elastic", "softmax", "logits")
    assert settings.divergence and settings.adaptive_budget and settings.anchor_weights and settings.anchor_routes
    assert (settings.late_start, settings.density, settings.keep) == (0.0, 0.25, 4)


@pytest.mark.parametrize(
    "given", [{"sharing": "off"}, {"gate": "analytic"}, {"divergence": False}, {"late_start": 0.5}]
)
def test_what_is_given_comes_before_the_preset(given: dict[str, object]) -> None:
    """One part off and all others on: an ablation."""
    paper, settings = LearnSettings(preset="paper"), LearnSettings.model_validate({"preset": "paper", **given})
    assert settings == paper.model_copy(update=given)
    assert settings != paper


@pytest.mark.parametrize("preset", PRESETS)
def test_stored_settings_are_read_back_as_they_were(preset: str) -> None:
    settings = LearnSettings.model_validate({"preset": preset, "rank": 7, "sharing": "frozen"})
    assert LearnSettings.model_validate(settings.model_dump(mode="json") | {"targets": settings.targets}) == settings


@pytest.mark.parametrize("preset", ["other", 3, ["paper"], None])
def test_another_preset_is_refused(preset: object) -> None:
    with pytest.raises(ValidationError, match="'seta' or 'paper'"):
        LearnSettings.model_validate({"preset": preset})


def test_a_preset_sets_only_what_there_is() -> None:
    for given in PRESETS.values():
        assert given.keys() <= LearnSettings.model_fields.keys()
