from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config
from trl.trainer.utils import add_fused_lm_head

from selfplay_gym.training.padding import MULTIPLE, skip_padding
from tests.players import fresh_policy

TOLERANCE = 2e-6
"""Float32 rounding: another length of a row makes another order of summation."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def llama() -> Any:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=60, max_position_embeddings=128, **sizes))


def qwen() -> Any:
    return fresh_policy().model


MODELS = {"qwen3": qwen, "llama": llama}


def padded(shapes: list[tuple[int, int, int]], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of rows with (left padding, tokens, right padding), as wide as the widest."""
    rng = random.Random(seed)
    width = max(map(sum, shapes))
    ids, mask = [], []
    for left, tokens, _ in shapes:
        right = width - left - tokens
        ids.append([0] * left + [rng.randrange(2, 60) for _ in range(tokens)] + [0] * right)
        mask.append([0] * left + [1] * tokens + [0] * right)
    return torch.tensor(ids), torch.tensor(mask)


def wrapped(model: Any) -> Any:
    other = copy.deepcopy(model)
    skip_padding(other)
    return other


def plain_states(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return each row's hidden states computed alone, without padding; zero at padding."""
    states = torch.zeros(*ids.shape, model.config.hidden_size)
    for row, (tokens, real) in enumerate(zip(ids, mask.bool(), strict=True)):
        if real.any():
            states[row, real] = model.model(tokens[real][None]).last_hidden_state[0]
    return states


def with_prompts(seed: int, groups: int, attempts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask as TRL pads them: prompts on the left, completions on the right, some rows alike."""
    rng = random.Random(seed)
    rows = []
    for _ in range(groups):
        prompt = [rng.randrange(2, 60) for _ in range(rng.randint(1, 24))]
        for _ in range(rng.randint(1, attempts)):
            rows.append((prompt, [rng.randrange(2, 5) for _ in range(rng.randint(1, 9))]))
    rng.shuffle(rows)
    before, after = (max(len(row[part]) for row in rows) for part in (0, 1))
    gaps = [(before - len(prompt), after - len(ending)) for prompt, ending in rows]
    ids = [[0] * left + p + e + [0] * right for (p, e), (left, right) in zip(rows, gaps, strict=True)]
    mask = [[0] * left + [1] * len(p + e) + [0] * right for (p, e), (left, right) in zip(rows, gaps, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


SHAPES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40), st.integers(0, 20)), min_size=1, max_size=6)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_hidden_states_are_those_of_the_row_alone(name: str, shapes: list[tuple[int, int, int]], seed: int) -> None:
    model = MODELS[name]()
    ids, mask = padded([*shapes, (1, 2, 0)], seed)
    with torch.no_grad():
        found = wrapped(model).model(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found, plain_states(model, ids, mask), atol=TOLERANCE * 10, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), groups=st.integers(1, 4), attempts=st.integers(1, 5))
def test_rows_that_begin_alike_do_not_see_each_other(name: str, seed: int, groups: int, attempts: int) -> None:
    model = MODELS[name]()
    ids, mask = with_prompts(seed, groups, attempts)
    with torch.no_grad():
        found = wrapped(model).model(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found, plain_states(model, ids, mask), atol=TOLERANCE * 10, rtol=1e-5)


def test_what_rows_begin_with_alike_is_computed_once() -> None:
    model = qwen()
    seen = tokens_seen(model)
    skip_padding(model)
    prompt = list(range(2, 32))
    rows = torch.tensor([[*prompt, 40 + n, 50] for n in range(8)])
    model(rows, attention_mask=torch.ones_like(rows))
    assert seen == [(1, 48)]  # 30 + 8 * 2, rounded up


def test_rows_with_little_in_common_and_long_ones_are_not_packed() -> None:
    model = qwen()
    seen = tokens_seen(model)
    skip_padding(model)
    strangers = torch.tensor([[2, 3, *[7 + n] * 14] for n in range(3)])
    model(strangers, attention_mask=torch.ones_like(strangers))
    assert seen.pop() == (3, 16)
    long = torch.tensor([[*[5] * 300, *[7 + n] * 80] for n in range(6)])
    model(long, attention_mask=torch.ones_like(long))
    assert sorted(seen) == [(3, 464)]


@pytest.mark.parametrize("kind", ["sliding", "eager"])
def test_a_model_that_makes_its_own_masks_gets_each_row_by_itself(kind: str) -> None:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    window = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0} if kind == "sliding" else {}
    config = Qwen2Config(vocab_size=60, num_key_value_heads=2, max_position_embeddings=128, **sizes, **window)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if kind == "eager" else "sdpa")
    ids, mask = with_prompts(1, 3, 5)
    with torch.no_grad():
        found = wrapped(model).model(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found, plain_states(model, ids, mask), atol=TOLERANCE * 10, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_output_layer_sees_what_has_a_label_alone(temperature: float) -> None:
    ids, mask = with_prompts(2, 3, 4)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-10] = -100
    found = []
    for skipping in (False, True):
        model = qwen()
        add_fused_lm_head(model, temperature, outputs=("log_probs", "entropy"))
        if skipping:
            skip_padding(model)
        widths: list[int] = []
        model.base_model.register_forward_hook(lambda m, a, o, w=widths: w.append(o.last_hidden_state[..., 0].numel()))
        outputs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        (outputs.log_probs**2).sum().backward()
        found.append((outputs, model.lm_head.weight.grad, widths))
    (plain, grad, _), (ours, our_grad, widths) = found
    assert widths == [int((labels[:, 1:] != -100).sum())]
    for name in ("log_probs", "entropy"):
        assert ours[name].shape == labels[:, 1:].shape
        torch.testing.assert_close(ours[name], plain[name], atol=1e-5, rtol=1e-5)
    assert (our_grad - grad).norm() / grad.norm() < 5 * TOLERANCE


def test_a_batch_without_labels_still_has_a_gradient() -> None:
    model = qwen()
    add_fused_lm_head(model)
    skip_padding(model)
    ids, mask = with_prompts(3, 2, 2)
    outputs = model(input_ids=ids, attention_mask=mask, labels=torch.full_like(ids, -100), fused_lm_head=True)
    outputs.log_probs.sum().backward()
    assert torch.count_nonzero(model.lm_head.weight.grad) == 0


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_rows_alone(name: str) -> None:
    model = MODELS[name]()
    ids, mask = padded([(0, 3, 9), (7, 20, 1), (2, 1, 0), (5, 33, 0), (0, 16, 4), (3, 17, 0)])
    weights = torch.randn(*ids.shape, model.config.hidden_size)
    bucketed = wrapped(model)
    (bucketed.model(ids, attention_mask=mask).last_hidden_state * weights).sum().backward()
    (plain_states(model, ids, mask) * weights).sum().backward()
    checked = 0
    for (name_, ours), theirs in zip(bucketed.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is None:  # the head of an untied model
            assert ours.grad is None
        else:
            error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
            assert error < 5 * TOLERANCE, name_
            checked += 1
    assert checked > 10


def test_logits_are_unchanged_where_there_are_tokens() -> None:
    model = qwen()
    ids, mask = padded([(4, 9, 2), (0, 5, 0), (1, 18, 1)])
    with torch.no_grad():
        found, expected = (m(ids, attention_mask=mask).logits[mask.bool()] for m in (wrapped(model), model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_generation_with_a_cache_is_unchanged() -> None:
    model = qwen().eval()
    ids, mask = padded([(4, 9, 0), (0, 13, 0)])
    how = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(wrapped(model).generate(ids, **how), model.generate(ids, **how))


def test_a_call_with_a_filled_cache_is_unchanged() -> None:
    model = qwen().eval()
    ids, mask = padded([(3, 9, 0), (0, 12, 0)])
    results = []
    for one in (model, wrapped(model)):
        with torch.no_grad():
            cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
            longer = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
            answer = one(torch.tensor([[5], [6]]), attention_mask=longer, past_key_values=cache, use_cache=True)
        results.append((answer.logits, answer.past_key_values.get_seq_length()))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] == 13


def test_a_call_without_a_mask_or_with_embeddings_is_unchanged() -> None:
    model = qwen().eval()
    ids, mask = padded([(0, 12, 0), (0, 12, 0)])
    embeddings = model.get_input_embeddings()(ids)
    with torch.no_grad():
        for arguments in ({"input_ids": ids}, {"inputs_embeds": embeddings, "attention_mask": mask}):
            found, expected = (m.model(**arguments).last_hidden_state for m in (wrapped(model), model))
            assert torch.equal(found, expected)


def tokens_seen(model: Any) -> list[tuple[int, int]]:
    """Return where the shapes (sequences, width) of what the decoder runs on will be."""
    seen: list[tuple[int, int]] = []
    model.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[:2])))
    return seen


def test_the_decoder_sees_little_padding() -> None:
    model = qwen()
    seen = tokens_seen(model)
    skip_padding(model)
    ids, mask = padded([(60, 4, 40), (50, 5, 0), (0, 70, 30), (9, 17, 0)])
    model(ids, attention_mask=mask)
    assert sorted(seen) == [(1, 32), (1, 80), (2, 16)]
    assert all(width % MULTIPLE == 0 for _, width in seen)
