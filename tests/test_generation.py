from __future__ import annotations

import copy
import json
import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from selfplay_gym.errors import InvalidConfig, SelfPlayError, UnknownId
from selfplay_gym.training import decoding, loading, nano
from selfplay_gym.training.backends import ContinuousBackend, TransformersBackend, make_backend
from selfplay_gym.training.config import RunConfig
from selfplay_gym.training.decoding import DecodeLoop, supports
from selfplay_gym.training.generation import GenerationBackend, Request, Sample, row_seed, stop_token_ids
from selfplay_gym.training.loading import load_tokenizer
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.run import load_policy

VOCABULARY, EOS, SECOND_STOP = 29, 1, 7
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": EOS,
    "bos_token_id": None,
}
ARCHITECTURES = {
    "qwen3": lambda **k: Qwen3ForCausalLM(Qwen3Config(head_dim=16, **SIZES, **k)),
    "qwen2": lambda **k: Qwen2ForCausalLM(Qwen2Config(**SIZES, **k)),
    "llama": lambda **k: LlamaForCausalLM(LlamaConfig(attention_bias=True, mlp_bias=True, **SIZES, **k)),
}


class FakeTokenizer:
    eos_token_id = EOS
    pad_token_id = 0


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(name: str = "qwen3", kv_heads: int = 2, tied: bool = True, **settings: Any) -> Any:
    torch.manual_seed(3)
    model = ARCHITECTURES[name](num_key_value_heads=kv_heads, tie_word_embeddings=tied, **settings)
    with torch.no_grad():  # fresh norms are all ones and biases all zeros, which would hide a forgotten one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15))
    return model.train()


def backends(model: Any, batch_size: int = 4) -> list[GenerationBackend]:
    return [
        make_backend(model, FakeTokenizer(), name, batch_size=batch_size) for name in ("transformers", "decode_loop")
    ]


def requests(count: int, temperature: float = 1.0, max_new_tokens: int = 12) -> list[Request]:
    lengths = [3 + (7 * i) % 11 for i in range(count)]
    return [
        Request(tuple(2 + (5 * i + 3 * j) % 27 for j in range(length)), max_new_tokens, temperature, row_seed(i))
        for i, length in enumerate(lengths)
    ]


def forward_logprobs(model: Any, request: Request, sample: Sample) -> list[float]:
    ids = torch.tensor([[*request.prompt_ids, *sample.ids]])
    model.eval()
    with torch.no_grad():
        logits = model(ids).logits[0, len(request.prompt_ids) - 1 : -1] / (request.temperature or 1.0)
    table = logits.log_softmax(-1)
    return [table[place, token].item() for place, token in enumerate(sample.ids)]


@pytest.mark.parametrize(("name", "kv_heads", "tied"), list(product(ARCHITECTURES, (1, 2, 4), (True, False))))
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_log_probs_are_those_of_a_full_forward(name: str, kv_heads: int, tied: bool, temperature: float) -> None:
    model = make_model(name, kv_heads, tied)
    asked = [*requests(6, temperature), replace(requests(1, temperature)[0], seed=99)]
    for request, sample in zip(asked, DecodeLoop(model, batch_size=5).generate(asked), strict=True):
        assert len(sample.ids) == len(sample.logprobs)
        assert sample.logprobs == pytest.approx(forward_logprobs(model, request, sample), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_transformers_log_probs_are_those_of_a_full_forward(temperature: float) -> None:
    model = make_model()
    asked = requests(6, temperature)
    for request, sample in zip(asked, TransformersBackend(model, FakeTokenizer(), 4).generate(asked), strict=True):
        assert sample.logprobs == pytest.approx(forward_logprobs(model, request, sample), abs=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_is_what_transformers_generates(name: str) -> None:
    model = make_model(name).eval()
    for request, *samples in zip(
        requests(5, 0.0), *(backend.generate(requests(5, 0.0)) for backend in backends(model)), strict=True
    ):
        prompt = torch.tensor([request.prompt_ids])
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12)
        for sample in samples:
            assert list(sample.ids) == expected[0, len(request.prompt_ids) :].tolist()


def test_both_backends_draw_the_same_samples_whatever_shares_the_batch() -> None:
    model, asked = make_model(), requests(24, max_new_tokens=20)
    expected = DecodeLoop(model, batch_size=1).generate(asked)
    assert len({sample.ids for sample in expected}) > 18
    for size in (5, 24):
        for backend in backends(model, size):
            assert [s.ids for s in backend.generate(asked)] == [s.ids for s in expected]
            assert [s.ids for s in backend.generate(asked[::-1])] == [s.ids for s in expected[::-1]]


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    model, asked = make_model(), requests(4)
    for backend in backends(model):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        first = backend.generate(asked)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(1)
        assert backend.generate(asked) == first


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_softmax(temperature: float) -> None:
    model, prompt, draws = make_model(), (4, 9, 2), 4000
    asked = [Request(prompt, 1, temperature, row_seed("draw", i)) for i in range(draws)]
    with torch.no_grad():
        expected = (model.eval()(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1) * draws
    for backend in backends(model, 1000):
        found = torch.bincount(torch.tensor([s.ids[0] for s in backend.generate(asked)]), minlength=VOCABULARY)
        common = expected >= 5
        chi_square = ((found - expected)[common] ** 2 / expected[common]).sum().item()
        assert chi_square < 60  # at most 28 degrees of freedom: chance is below 0.0005


def test_every_stop_token_ends_a_row_and_nothing_follows_it() -> None:
    model = make_model()
    model.generation_config.eos_token_id = [SECOND_STOP, 12]
    assert stop_token_ids(model, FakeTokenizer()) == {EOS, SECOND_STOP, 12}
    for backend in backends(model, 16):
        samples = backend.generate(requests(60, max_new_tokens=30))
        stops = [[token in (EOS, SECOND_STOP, 12) for token in sample.ids] for sample in samples]
        assert {sample.ids[-1] for sample in samples if sample.finished} == {EOS, SECOND_STOP, 12}
        for sample, row in zip(samples, stops, strict=True):
            assert not any(row[:-1])
            assert row[-1] == sample.finished
            assert sample.finished or len(sample.ids) == 30


def test_each_row_keeps_its_own_limit_and_temperature() -> None:
    model = make_model()
    asked = [replace(r, max_new_tokens=1 + 9 * (i % 4), temperature=i % 3 / 2) for i, r in enumerate(requests(24))]
    alone = [DecodeLoop(model).generate([request])[0] for request in asked]
    for backend in backends(model, 24):
        samples = backend.generate(asked)
        assert [s.ids for s in samples] == [s.ids for s in alone]
        for request, sample in zip(asked, samples, strict=True):
            assert 1 <= len(sample.ids) <= request.max_new_tokens
            assert sample.finished or len(sample.ids) == request.max_new_tokens
            assert sample.logprobs == pytest.approx(forward_logprobs(model, request, sample), abs=1e-5)


def test_long_rows_outgrow_the_cache_blocks_and_batches_shrink() -> None:
    model = make_model()
    asked = requests(50, max_new_tokens=150)
    samples = DecodeLoop(model, batch_size=50, stop={EOS}).generate(asked)
    assert max(len(sample.ids) for sample in samples) > 64
    for request, sample in zip(asked, samples, strict=True):
        assert sample.logprobs == pytest.approx(forward_logprobs(model, request, sample), abs=1e-5)


def test_long_prompts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PREFILL_WIDTH", 3)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 30)
    model, asked = make_model(), [*requests(9), *requests(4)]
    for request, sample in zip(asked, DecodeLoop(model).generate(asked), strict=True):
        assert sample.logprobs == pytest.approx(forward_logprobs(model, request, sample), abs=1e-5)


def test_a_model_that_stops_at_once_still_gives_one_token() -> None:
    model = make_model(tied=False)
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits equal: greedy takes token 0
    model.generation_config.eos_token_id = 0
    for backend in backends(model):
        assert backend.generate(requests(2, 0.0)) == [Sample((0,), (pytest.approx(-math.log(VOCABULARY)),), True)] * 2


def test_no_requests_give_no_samples() -> None:
    assert [backend.generate([]) for backend in backends(make_model())] == [[], []]


def test_generation_is_in_eval_mode_and_restores_every_module() -> None:
    model = make_model(attention_dropout=0.9)
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    settings = model.generation_config
    first, second = (backend.generate(requests(4)) for backend in backends(model))
    assert [s.ids for s in first] == [s.ids for s in second]
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is settings


def test_the_checkpoints_sampling_settings_are_not_applied() -> None:
    model, asked = make_model(), requests(8)
    expected = TransformersBackend(model, FakeTokenizer(), 8).generate(asked)
    model.generation_config.update(top_k=1, top_p=0.1, temperature=0.1, repetition_penalty=5.0, min_new_tokens=9)
    assert TransformersBackend(model, FakeTokenizer(), 8).generate(asked) == expected


def test_the_loop_sees_weights_as_they_are_now() -> None:
    model, asked = make_model(), requests(3, 0.0)
    loop = DecodeLoop(model)
    before = loop.generate(asked)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    after = loop.generate(asked)
    assert after != before
    assert after[0].logprobs == pytest.approx(forward_logprobs(model, asked[0], after[0]), abs=1e-5)


def test_what_is_asked_from_the_start_comes_from_the_first_weights(checkpoint: Path) -> None:
    policy = load_policy(RunConfig.model_validate({"model": str(checkpoint), "play": {"frozen_proposer": True}}))
    now, begun = requests(4), [replace(request, from_start=True) for request in requests(4)]
    before = policy.backend.generate(now)
    with torch.no_grad():
        policy.model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    mixed = [request for pair in zip(begun, now, strict=True) for request in pair]
    after = policy.backend.generate(mixed)
    assert [sample.ids for sample in after[::2]] == [sample.ids for sample in before]
    assert all(a.logprobs != b.logprobs for a, b in zip(after[1::2], before, strict=True))
    for request, sample in zip(now, after[1::2], strict=True):
        assert sample.logprobs == pytest.approx(forward_logprobs(policy.model, request, sample), abs=1e-5)


def test_bfloat16_stays_near() -> None:
    model, asked = make_model(), requests(8)
    for request, sample in zip(asked, DecodeLoop(model, dtype=torch.bfloat16).generate(asked), strict=True):
        assert sample.logprobs == pytest.approx(forward_logprobs(model, request, sample), abs=0.2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loop_makes_its_tensors_where_the_model_is(name: str) -> None:
    # The meta device computes nothing, but as a GPU does it refuses a tensor that was left on the CPU.
    weights = decoding._Weights(make_model(name).to("meta"), torch.float32)
    ids = torch.zeros(2, 8, dtype=torch.int64, device="meta")
    logits = decoding._read_prompts(weights, ids, ids[:, 0], decoding._Cache.empty(weights, 2, 8))
    assert (logits.device.type, logits.shape) == ("meta", (2, VOCABULARY))


def test_weights_that_diverged_are_reported() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    for backend, temperature in product(backends(model), (0.0, 1.0)):
        with pytest.raises(SelfPlayError, match="diverged"):
            backend.generate(requests(2, temperature))


def test_the_loop_knows_what_it_does_not_know() -> None:
    assert all(supports(make_model(name)) for name in ARCHITECTURES)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert not supports(make_model("llama", rope_parameters=scaled))
    assert not supports(make_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0))
    assert not supports(make_model(hidden_act="gelu"))
    adapted = make_model()
    adapted.model.layers[0].self_attn.q_proj = torch.nn.Sequential(adapted.model.layers[0].self_attn.q_proj)
    assert not supports(adapted)
    assert isinstance(make_backend(adapted, FakeTokenizer()), TransformersBackend)
    with pytest.raises(InvalidConfig, match="knows plain Qwen3"):
        make_backend(adapted, FakeTokenizer(), "decode_loop")


def test_auto_takes_the_loop_and_unknown_names_get_neighbours() -> None:
    assert isinstance(make_backend(make_model(), FakeTokenizer()), DecodeLoop)
    with pytest.raises(UnknownId, match="decode_loop"):
        make_backend(make_model(), FakeTokenizer(), "decode-loop")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_ids": ()}, "at least one token"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
    ],
)
def test_impossible_requests_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        replace(requests(1)[0], **settings)


# -- continuous batching -----------------------------------------------------------------------------------------------


def continuous(model: Any) -> ContinuousBackend:
    return ContinuousBackend(model, FakeTokenizer(), memory=0.02)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_continuous_batching_keeps_prompts_limits_temperatures_and_log_probs(name: str) -> None:
    model = make_model(name)
    asked = [replace(r, max_new_tokens=1 + 9 * (i % 2), temperature=i % 2 / 2) for i, r in enumerate(requests(18))]
    for request, sample in zip(asked, continuous(model).generate(asked), strict=True):
        assert sample.finished or len(sample.ids) == request.max_new_tokens
        assert not any(token == EOS for token in sample.ids[:-1])
        # It takes the logarithm of a probability in float32, which is 1e-5 off where that is small.
        assert sample.logprobs == pytest.approx(forward_logprobs(model, request, sample), abs=1e-4)


def test_continuous_batching_is_greedy_where_asked() -> None:
    model, asked = make_model(), requests(9, 0.0)
    expected = TransformersBackend(model, FakeTokenizer()).generate(asked)
    assert [s.ids for s in continuous(model).generate(asked)] == [s.ids for s in expected]


def test_seeds_fix_what_continuous_batching_samples() -> None:
    model, asked = make_model(), [replace(requests(1)[0], seed=n) for n in range(20)]
    state = torch.get_rng_state()
    first = continuous(model).generate(asked)
    assert torch.equal(state, torch.get_rng_state())
    assert continuous(model).generate(asked) == first
    assert len({sample.ids for sample in first}) > 15
    assert continuous(model).generate([replace(request, seed=request.seed + 50) for request in asked]) != first


def test_continuous_batching_leaves_the_model_as_it_was() -> None:
    model = make_model(attention_dropout=0.9)
    modes, settings = [module.training for module in model.modules()], model.generation_config
    attention = model.config._attn_implementation
    before = continuous(model).generate(requests(4, 0.0))
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is settings
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    assert continuous(model).generate(requests(4, 0.0)) != before
    model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()


def test_continuous_batching_that_fails_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    model.model.layers[0].mlp.forward = None
    with pytest.raises(SelfPlayError, match="continuous batching completed 0 of 3 prompts") as caught:
        continuous(model).generate(requests(3))
    assert "\n" not in str(caught.value)


def test_the_named_backend_is_made() -> None:
    backend = make_backend(make_model(), FakeTokenizer(), "continuous", memory=0.1)
    assert isinstance(backend, ContinuousBackend)
    assert backend.memory == 0.1


# -- the policy ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = nano.build_tokenizer()
    nano.build_model(tokenizer, hidden=64, layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_policy_samples_texts_in_order(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "CHUNK", 3)
    policy = Policy.load(checkpoint, device="cpu")
    assert isinstance(policy.backend, DecodeLoop)
    prompts, heard = ["f(3) = ?", "abs(x)", "f(3) = ?", "x[::-1]", "y"], []
    settings = {"chat": False, "max_new_tokens": 6, "temperature": 1.0, "seed": 5}
    completions = policy.sample(prompts, progress=heard.append, **settings)
    assert heard == [3, 5]
    assert [c.text for c in completions] == [policy.decode(c.sample.ids) for c in completions]
    assert completions[0].sample.ids != completions[2].sample.ids
    assert policy.sample(prompts, **settings) == completions
    assert policy.sample(prompts, **{**settings, "seed": 6}) != completions


def test_decoding_is_faithful(checkpoint: Path) -> None:
    policy = Policy.load(checkpoint, device="cpu")
    text = "def f(x):\n    x = x + 12 , 'a'\n"
    ids = policy.encode(text, chat=False)
    assert policy.decode(ids) == text
    assert policy.decode([*ids, policy.tokenizer.eos_token_id]) == text


def test_begin_tokens_are_kept_and_end_tokens_are_not(checkpoint: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    policy = Policy.load(checkpoint, device="cpu")
    plain = policy.encode("abs(x)", chat=False)
    policy.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", EOS)]
    )
    assert policy.encode("abs(x)", chat=False) == (2, *plain)


def test_chat_needs_a_template(checkpoint: Path) -> None:
    policy = Policy.load(checkpoint, device="cpu")
    with pytest.raises(InvalidConfig, match=r"needs a tokenizer with a chat template, .*: choose the style azr"):
        policy.encode("x", chat=True)
    policy.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert policy.decode(policy.encode("abs(x)", chat=True)) == "[user]abs(x)[assistant]"


def test_what_is_no_model_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "file").touch()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    cases = [tmp_path, tmp_path / "none", tmp_path / "file", broken, "nobody/has-this-model", "not a name!"]
    for source in cases:
        with pytest.raises(InvalidConfig, match="cannot load a model from") as caught:
            Policy.load(source)
        assert "\n" not in str(caught.value)
        assert "save_pretrained" in str(caught.value)


def copy_of(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """Copy a checkpoint, with other settings in its configuration."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


def without(prefix: str, file: Path) -> None:
    """Remove the tensors of a name that begins so."""
    tensors = load_file(file)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    assert len(kept) < len(tensors)
    save_file(kept, file, metadata={"format": "pt"})


def test_a_checkpoint_that_lacks_a_layer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path / "part")
    without("model.layers.0.mlp.", folder / "model.safetensors")
    with pytest.raises(InvalidConfig, match=r"not whole: 3 of its \d+ weights are missing, model\.layers\.0\.mlp\."):
        Policy.load(folder)


def test_weights_of_another_kind_of_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path / "bert", model_type="bert", architectures=["BertLMHeadModel"])
    with pytest.raises(InvalidConfig, match=r"not whole: (\d+) of its \1 weights are missing"):
        Policy.load(folder)


def test_weights_of_another_size_are_refused_without_a_table(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    folder = copy_of(checkpoint, tmp_path / "wide", hidden_size=128)
    with pytest.raises(
        InvalidConfig, match=r"not whole: its .* has the size \[.*64\], where .* asks for \[.*128\]"
    ) as error:
        Policy.load(folder)
    assert "\n" not in str(error.value)
    assert caplog.records == []


def test_tied_weights_are_not_missing_and_others_are(checkpoint: Path, tmp_path: Path) -> None:
    assert "lm_head.weight" not in load_file(checkpoint / "model.safetensors")
    Policy.load(checkpoint)
    with pytest.raises(InvalidConfig, match=r"1 of its \d+ weights are missing, lm_head\.weight among them"):
        Policy.load(copy_of(checkpoint, tmp_path / "untied", tie_word_embeddings=False))


def test_adapters_that_lack_a_part_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    policy = Policy.load(checkpoint, device="cpu")
    get_peft_model(policy.model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    Policy.load(tmp_path)
    without("base_model.model.model.layers.0.mlp.up_proj", tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidConfig, match="missing adapter keys"):
        Policy.load(tmp_path)


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]])
def test_a_missing_tokenizer_is_told(checkpoint: Path, tmp_path: Path, left: list[str]) -> None:
    folder = copy_of(checkpoint, tmp_path / "mute")
    for file in folder.glob("tokenizer*"):
        if file.name not in left:
            file.unlink()
    with pytest.raises(InvalidConfig, match="tokenizer"):
        Policy.load(folder)
    if not left:
        with pytest.raises(InvalidConfig, match=r"lacks its tokenizer: expected tokenizer\.json"):
            load_tokenizer(str(folder))


def test_a_long_prompt_is_nothing_to_warn_of(checkpoint: Path) -> None:
    tokenizer = (policy := Policy.load(checkpoint, device="cpu")).tokenizer
    tokenizer.model_max_length = 2
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert len(policy.encode("abs(x) + abs(y)", chat=False)) > 2
    assert len(policy.encode("abs(x) + abs(y)", chat=True)) > 2
    assert not tokenizer.deprecation_warnings  # where transformers notes that it has warned


def test_weights_that_are_missing_give_one_line(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InvalidConfig, match="cannot load a model from"):
        Policy.load(tmp_path)


def test_impossible_dtypes_and_devices_are_refused(checkpoint: Path) -> None:
    with pytest.raises(InvalidConfig, match="dtype must be"):
        Policy.load(checkpoint, dtype="float8")
    with pytest.raises(InvalidConfig, match="device must be"):
        Policy.load(checkpoint, device="graphics card")


@pytest.mark.parametrize(("local_rank", "expected"), [(None, "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")])
def test_each_process_of_a_host_takes_a_gpu_of_its_own(
    local_rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert loading.find_device("auto") == torch.device(expected)


def test_generation_leaves_the_model_trainable() -> None:
    model = make_model()
    for backend in backends(model):
        backend.generate(requests(2))
        loss = copy.deepcopy(model)(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss
        loss.backward()
        assert torch.isfinite(loss)
