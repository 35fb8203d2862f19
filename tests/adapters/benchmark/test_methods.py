"""Methods by name, and settings as they come from the command line."""

import pytest
from pydantic import ValidationError

from adapters.benchmark.methods import KINDS, parse_method, parse_methods
from adapters.benchmark.settings import SetaSettings
from adapters.data import DataError


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_method_has_the_run_s_steps_and_seed(name):
    method = parse_method(name, 7, 3, {})
    assert (method.settings.steps, method.settings.seed, method.label) == (7, 3, name)


def test_seta_paper_is_the_preset() -> None:
    paper = parse_method("seta-paper:density=0.13", 7, 0, {}).settings
    assert paper == SetaSettings(preset="paper", steps=7, density=0.13)
    assert paper.gate == "softmax" and paper.sharing == "elastic"


def test_a_variant_s_own_settings_come_last():
    method = parse_method("seta:late_start=0:targets=v_proj+o_proj", 7, 0, {"late_start": "0.3", "rank": "4"})
    assert (method.settings.late_start, method.settings.rank) == (0, 4)
    assert method.settings.targets == ("v_proj", "o_proj")
    assert method.label == "seta:late_start=0:targets=v_proj+o_proj"


def test_none_is_the_default_of_an_optional_setting():
    assert parse_method("seta:trunk_layers=none", 7, 0, {}).settings.trunk_layers is None


def test_an_override_reaches_the_methods_that_have_it():
    seta, lora = parse_methods(["seta", "seq-lora"], 7, 0, {"density": "0.1", "batch_size": "2"})
    assert (seta.settings.density, seta.settings.batch_size, lora.settings.batch_size) == (0.1, 2, 2)


@pytest.mark.parametrize(
    ("specs", "overrides", "message"),
    [
        (["seta", "no-such"], {}, "method 'no-such' found; expected one of seta"),
        (["seta", "seta"], {}, "'seta' comes twice"),
        ([], {}, "no method"),
        (["seta:density"], {}, "'density' found; expected name=value"),
        (["seta:colour=red"], {}, "seta has no setting 'colour'"),
        (["seq-lora"], {"density": "0.1"}, "--set density: none of the methods seq-lora"),
    ],
)
def test_what_cannot_be_is_said(specs, overrides, message):
    with pytest.raises(DataError, match=message):
        parse_methods(specs, 7, 0, overrides)


def test_a_value_out_of_range_is_the_settings_own_error():
    with pytest.raises(ValidationError, match="density"):
        parse_method("seta:density=2", 7, 0, {})
