"""The backbone cut at the trunk is the model's own forward pass; trunk outputs do not depend on the batch."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from adapters.backbone import Backbone, UnsupportedModel
from adapters.trunk import batches_by_length, pad_hidden, pad_ids, trunk_outputs
from tests.tiny import CONFIGS, Architecture, make_tiny_model

ARCHITECTURES: list[Architecture] = ["llama", "qwen2", "qwen3"]
TRUNK_LAYERS = 2


@pytest.fixture(scope="module", params=ARCHITECTURES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = make_tiny_model(tmp_path_factory.mktemp("model"), request.param, num_kv_heads=1)
    return Backbone.load(path, "float32")


def sequences(backbone: Backbone) -> list[list[int]]:
    """Token ids of unequal lengths, from one token on."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = backbone.model.config.vocab_size
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in (1, 23, 7, 40, 7, 2)]


@torch.no_grad()
def own_logits(backbone: Backbone, ids: list[int]) -> Tensor:
    return backbone.model(torch.tensor([ids])).logits[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("trunk_layers", [0, 1, 3, 4])
@torch.no_grad()
def test_two_parts_in_a_row_are_the_models_own_forward(backbone: Backbone, trunk_layers: int) -> None:
    """One sequence at a time, and all of them padded on the right in one batch."""
    found = sequences(backbone)
    padded = backbone.embed(pad_ids(found))
    padded = backbone.run(backbone.run(padded, 0, trunk_layers), trunk_layers, backbone.num_layers)
    for row, ids in enumerate(found):
        expected = own_logits(backbone, ids)
        alone = backbone.run(backbone.embed(torch.tensor([ids])), 0, trunk_layers)
        alone = backbone.run(alone, trunk_layers, backbone.num_layers)
        torch.testing.assert_close(backbone.logits(alone)[0], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(backbone.logits(padded[row, : len(ids)]), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_is_padded_is_of_no_consequence(backbone: Backbone) -> None:
    ids = sequences(backbone)[2]
    batch = torch.tensor([ids + [9] * 5, ids + [200] * 5])
    hidden = backbone.run(backbone.embed(batch), 0, backbone.num_layers)
    assert torch.equal(hidden[0, : len(ids)], hidden[1, : len(ids)])


@torch.no_grad()
def test_a_cache_and_an_offset_continue_a_sequence(backbone: Backbone) -> None:
    ids = sequences(backbone)[3]
    whole = backbone.run(backbone.embed(torch.tensor([ids])), 0, backbone.num_layers)
    cache = DynamicCache()
    parts, start = [], 0
    for stop in (17, 18, 19, len(ids)):
        embedded = backbone.embed(torch.tensor([ids[start:stop]]))
        parts.append(backbone.run(embedded, 0, backbone.num_layers, cache=cache, offset=start))
        start = stop
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_trunk_outputs_batched_equal_one_by_one(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, of their lengths, and equal to what the model itself says enters the layer."""
    monkeypatch.setattr("adapters.trunk.BATCH_TOKENS", 24)
    found = sequences(backbone)
    batched = trunk_outputs(backbone, found, TRUNK_LAYERS, "test")
    assert len(list(batches_by_length([len(ids) for ids in found], 24))) == 4, (
        "several batches, the first of several rows"
    )
    for ids, output in zip(found, batched, strict=True):
        with torch.no_grad():
            states = backbone.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert output.shape == (len(ids), 128)
        torch.testing.assert_close(output, states[TRUNK_LAYERS][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lengths", [[], [5], [9, 1, 4, 4, 30, 2], [10] * 7])
def test_batches_hold_every_index_once_within_the_budget(lengths: list[int]) -> None:
    batches = list(batches_by_length(lengths, 20))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 20


def test_hidden_states_are_padded_on_the_right() -> None:
    padded = pad_hidden([torch.ones(2, 3), torch.full((4, 3), 2.0)])
    assert padded.shape == (2, 4, 3)
    assert padded[0].sum() == 6 and bool((padded[0, 2:] == 0).all())


def test_the_model_is_frozen_and_knows_its_end_of_turn(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert backbone.eos_ids == {backbone.tokenizer.eos_token_id}


def test_sliding_window_layers_are_refused(backbone: Backbone) -> None:
    config = CONFIGS["qwen2"](
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        layer_types=["full_attention", "sliding_attention"],
        use_sliding_window=True,
        sliding_window=8,
    )
    with pytest.raises(UnsupportedModel, match="sliding_attention"):
        Backbone.wrap(AutoModelForCausalLM.from_config(config), None)


def test_something_that_is_no_decoder_stack_is_refused() -> None:
    from transformers import GPT2Config

    config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=8)
    with pytest.raises(UnsupportedModel, match="GPT2"):
        Backbone.wrap(AutoModelForCausalLM.from_config(config), None)
