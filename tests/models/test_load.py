import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from steptool.chat.codec import ChatCodec
from steptool.check.plan import read_base_shape
from steptool.config import Config, PolicyConfig
from steptool.models import load as models
from steptool.models.load import (
    ModelError,
    check_model,
    load_codec,
    load_model,
    load_tokenizer,
    prepare_base,
    train_tokenizer,
)
from steptool.models.serving import write_serving

TEXTS = ['where is order ord_17? {"error": "no such order"}', "Grüße, 東京 and <tool_call> too"] * 20
TOKENIZER = train_tokenizer(TEXTS, vocabulary=400)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_base(PolicyConfig(base="scratch", max_context=512), TEXTS, 0, tmp_path_factory.mktemp("m") / "base")


@pytest.fixture
def copy(scratch: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scratch, tmp_path / "copy"))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_scratch_makes_a_folder_that_loads(scratch: Path) -> None:
    tokenizer, model = load_tokenizer(scratch), load_model(scratch)
    assert model.dtype is torch.float32
    assert not model.training
    assert model.config.max_position_embeddings == 512
    assert model.config.vocab_size >= len(tokenizer)
    codec = ChatCodec(tokenizer)
    assert codec.end_ids == {tokenizer.eos_token_id}
    for text in TEXTS[:2]:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    ids = torch.tensor([codec.prompt_ids([{"role": "user", "content": "hi"}], [])])
    assert model(input_ids=ids.to(model.device)).logits.isfinite().all()


def test_the_vocabulary_has_the_size_that_was_asked_for() -> None:
    assert len(train_tokenizer([" ".join(map(str, range(5000)))], vocabulary=300)) == 300


@given(st.text())
def test_no_text_is_lost_in_a_trained_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=False) == text


def test_the_seed_draws_the_weights_and_touches_no_other_random_numbers(tmp_path: Path, scratch: Path) -> None:
    before = torch.random.get_rng_state()
    policy = PolicyConfig(base="scratch", max_context=512)
    again, other = (load_model(prepare_base(policy, TEXTS, seed, tmp_path / str(seed))) for seed in (0, 1))
    assert same_weights(load_model(scratch), again)
    assert not same_weights(again, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_local_folder_is_taken_as_it_is(scratch: Path, tmp_path: Path) -> None:
    target = prepare_base(PolicyConfig(base=str(scratch)), [], 0, tmp_path / "taken")
    assert same_weights(load_model(scratch), load_model(target))
    assert load_tokenizer(target).get_vocab() == load_tokenizer(scratch).get_vocab()
    assert load_tokenizer(target).chat_template == load_tokenizer(scratch).chat_template


@pytest.mark.skipif(not models.EMBEDDED.is_dir(), reason="the embedded model is not there")
def test_the_embedded_model_can_be_used(tmp_path: Path) -> None:
    target = prepare_base(PolicyConfig(), [], 0, tmp_path)
    assert load_model(target).dtype is torch.float32
    assert ChatCodec(load_tokenizer(target)).end_token == "<|end|>"


@pytest.mark.parametrize(
    ("lost", "complaint"),
    [
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no weights"),
        ("config.json", "no configuration"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_name(copy: Path, lost: str, complaint: str) -> None:
    (copy / lost).unlink()
    with pytest.raises(ModelError, match=complaint) as excinfo:
        load_model(copy)
    assert str(copy) in str(excinfo.value)
    with pytest.raises(ModelError, match=complaint):
        prepare_base(PolicyConfig(base=str(copy)), [], 0, copy.parent / "out")


def test_a_base_without_a_chat_template_is_refused_or_gets_one_for_react(copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template.*set policy.chat_format to react"):
        prepare_base(PolicyConfig(base=str(copy)), [], 0, tmp_path / "out")
    target = prepare_base(PolicyConfig(base=str(copy), chat_format="react"), [], 0, tmp_path / "out")
    codec = load_codec(target, "react")
    ids = codec.prompt_ids([{"role": "user", "content": "Hi.\nAssistant: no"}], [])
    assert codec.tokenizer.decode(ids) == "User:\nHi.\nAssistant : no\n\nAssistant:\n"
    assert codec.end_token == codec.tokenizer.eos_token == "<|im_end|>"


def test_a_hub_id_without_a_chat_template_works_with_react(copy: Path, tmp_path: Path) -> None:
    """The model lies where the Hub's client keeps what it has fetched; the process that reads it is offline."""
    (copy / "chat_template.jinja").unlink()
    cached = tmp_path / "hub" / "models--acme--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(copy, cached / "snapshots" / ("0" * 40))
    program = """
import sys
from steptool.config import Config, PolicyConfig
from steptool.models.load import ModelError, load_codec, prepare_base
try:
    prepare_base(PolicyConfig(base="acme/tiny"), [], 0, sys.argv[1])
except ModelError as error:
    print(error)
target = prepare_base(PolicyConfig(base="acme/tiny", chat_format="react"), [], 0, sys.argv[1])
codec = load_codec(target, "react")
print(repr(codec.tokenizer.decode(codec.prompt_ids([{"role": "user", "content": "Hi."}], []))))
try:
    prepare_base(PolicyConfig(base="acme/none", chat_format="react"), [], 0, sys.argv[1])
except ModelError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    refusals, prompt, *unknown = process.stdout.splitlines()
    assert re.search(r"acme/tiny: .*no chat template.*set policy.chat_format to react", refusals), process.stderr
    assert prompt == repr("User:\nHi.\n\nAssistant:\n")
    assert unknown[0].startswith("acme/none: neither a model folder here nor a model that the Hub gives")


def test_an_empty_name_is_no_model() -> None:
    with pytest.raises(ModelError, match=r"^no model is named; expected a model folder"):
        load_tokenizer("")


@pytest.mark.parametrize("folder", ["runs/none/policy", "./none", "/none/at/all"])
def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(folder: str) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("dtype_name", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
@pytest.mark.parametrize("base", ["scratch", "embedded"])
def test_the_base_is_saved_in_the_precision_of_the_policy(
    tmp_path: Path, base: str, dtype_name: str, expected: torch.dtype
) -> None:
    policy = PolicyConfig.model_validate({"base": base, "dtype": dtype_name, "max_context": 512})
    folder = prepare_base(policy, TEXTS, 0, tmp_path / "first")
    assert load_model(folder).dtype is expected
    again = prepare_base(PolicyConfig(base=str(folder)), [], 0, tmp_path / "second")
    assert load_model(again).dtype is expected


def test_pickled_weights_are_refused_with_the_way_to_convert_them(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled and are not read.*save_pretrained"):
        load_model(copy)


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _name_a_lost_part(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _link_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/nowhere/model.safetensors")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_cut, r"its weights cannot be used \(SafetensorError: .*incomplete metadata, file not fully covered"),
        (_name_a_lost_part, r"its weights cannot be used \(FileNotFoundError: .*model-00002-of-00002"),
        (_link_to_nothing, r"its weights cannot be used \(FileNotFoundError: "),
        (lambda m: (m / "tokenizer.json").write_text("{"), "its tokenizer cannot be used"),
        (
            lambda m: (m / "chat_template.jinja").write_text("{{ raise_exception('never') }}"),
            "template refuses .*never",
        ),
        (lambda m: (m / "chat_template.jinja").write_text("{% for m in"), "the chat template refuses messages"),
        (lambda m: (m / "generation_config.json").write_text("{"), r"its generation_config\.json cannot be used"),
        (lambda m: (m / "generation_config.json").write_text('{"eos_token_id": "x"}'), "names 'x' as eos_token_id"),
        (lambda m: (m / "config.json").write_text('{"model_type": "vit"}'), "a model with ViTConfig writes no text"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line_before_its_weights_are_loaded(
    copy: Path, damage: Callable[[Path], object], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=complaint) as excinfo:
        read_base_shape(PolicyConfig(base=str(copy)))
    assert str(excinfo.value).startswith(f"{copy}: ") and capfd.readouterr() == ("", "")


def test_weights_of_other_sizes_are_named(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 5000}))
    with pytest.raises(
        ModelError, match=r"'model\.embed_tokens\.weight' have the sizes \[\d+, 64\], .* for \[5000, 64\]"
    ):
        load_model(copy)
    assert capfd.readouterr() == ("", "")


def test_a_model_with_code_of_its_own_is_refused_by_name(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    (copy / "own.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(ModelError, match="Python code of its own, which is never run"):
        load_model(copy)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"vocab_size": -5}, "its model cannot be used"),
        ({"vocab_size": "x"}, "Field 'vocab_size' expected int"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_size": 2**63}, "its model cannot be used"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers: expected at most 2000, got 1000000"),
        ({"text_config": {"num_experts": 10**9}}, "num_experts: expected at most 2000"),
        ({"dtype": "evil"}, "cannot be used"),
        ({"attn_implementation": "someone/kernel"}, "someone/kernel is a kernel of the Hub, which is code"),
        ({"text_config": {"_attn_implementation": "someone/kernel"}}, "which is code and is never fetched"),
        ({"parts": [1, [{"attn_implementation": "someone/kernel"}]]}, "which is code and is never fetched"),
        ({"parts": [{"num_hidden_layers": 10**6}]}, "num_hidden_layers: expected at most 2000, got 1000000"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_by_name(
    copy: Path, change: dict[str, object], complaint: str
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=complaint) as excinfo:
        load_model(copy)
    assert str(excinfo.value).startswith(f"{copy}: ")


@pytest.mark.parametrize("text", ["[1, 2]", "null", "[" * 900 + "]" * 900, "{", "", '{"model_type": "evil"}'])
def test_a_configuration_that_is_none_is_refused_by_name(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"cannot be used|neither a model folder") as excinfo:
        load_model(copy)
    assert str(excinfo.value).startswith(f"{copy}: ")


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60}
SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 6}}, "its normalizer makes texts up to 46656"),
        (
            {"decoder": {"type": "Sequence", "decoders": [REPLACE] * 2}},
            "its decoder makes texts up to 3600 times as long",
        ),
        ({"pre_tokenizer": {**SLOW, "pattern": {"Regex": "(a"}}}, "its tokenizer cannot be used"),
        ({"model": {}}, "its tokenizer cannot be used"),
        ({"added_tokens": None}, "its tokenizer cannot be used"),
    ],
)
def test_a_hostile_tokenizer_is_refused_by_name(copy: Path, change: dict[str, object], complaint: str) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**tokenizer, **change}))
    with pytest.raises(ModelError, match=complaint) as excinfo:
        load_tokenizer(copy)
    assert str(excinfo.value).startswith(f"{copy}: ")


@pytest.mark.parametrize("change", [{"model_max_length": "x"}, {"eos_token": [1]}, {"extra_special_tokens": {"a": 5}}])
def test_hostile_settings_of_a_tokenizer_are_refused_by_name(copy: Path, change: dict[str, object]) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ModelError, match="its tokenizer cannot be used"):
        load_tokenizer(copy)


def test_a_text_on_which_a_tokenizer_gives_up_is_an_error_that_says_so(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    before = tokenizer["pre_tokenizer"]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [SLOW, before]}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    codec = load_codec(copy)
    with pytest.raises(ValueError, match=r"the tokenizer cannot read or write a text \(Onig: .*another tokenizer"):
        codec.observation_ids("a" * 60 + "!", "call")


def change_config(folder: Path, name: str, values: dict[str, object]) -> None:
    """Add values to a JSON file of a folder."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.is_file() else {}), **values}))


ODD = {"num_beams": 1, "early_stopping": True, "repetition_penalty": 1.3, "forced_eos_token_id": 5, "top_k": 20}


def test_a_model_is_not_decoded_with_the_penalties_of_its_base(copy: Path, tmp_path: Path) -> None:
    """transformers refuses to save these settings; vLLM and transformers would follow them."""
    change_config(copy, "generation_config", {**ODD, "pad_token_id": 0, "do_sample": True})
    target = prepare_base(PolicyConfig(base=str(copy)), [], 0, tmp_path / "target")
    assert not ODD.keys() & json.loads((target / "generation_config.json").read_text()).keys()
    change_config(target, "generation_config", ODD)
    write_serving(target, Config())
    decoding = json.loads((target / "generation_config.json").read_text())
    assert ODD.keys() & decoding.keys() == {"top_k"}
    assert (decoding["top_k"], decoding["pad_token_id"], decoding["max_new_tokens"]) == (0, 0, 48)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "a new one"])
def test_quantised_weights_are_refused_by_name(copy: Path, method: str) -> None:
    change_config(copy, "config", {"quantization_config": {"quant_method": method}})
    for read in (load_model, lambda folder: check_model(folder, PolicyConfig())):
        with pytest.raises(ModelError, match=rf"quantised \({method}\).*name the model that it was made from"):
            read(copy)


def test_weights_of_eight_bits_are_trained_in_sixteen(copy: Path, tmp_path: Path) -> None:
    """Each block of weights is multiplied by its scale. Nothing of the quantisation remains."""
    whole = {name: weight.bfloat16() for name, weight in load_file(copy / "model.safetensors").items()}
    quantised = dict(whole)
    for name in (n for n in whole if n.endswith("proj.weight")):
        quantised[name] = (whole[name] * 8).to(torch.float8_e4m3fn)
        quantised[f"{name}_scale_inv"] = torch.full([-(-size // 16) for size in whole[name].shape], 1 / 8)
    save_file(quantised, copy / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    change_config(copy, "config", {"quantization_config": settings, "dtype": "bfloat16"})
    target = prepare_base(PolicyConfig(base=str(copy)), [], 0, tmp_path / "target")
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    weights = load_file(target / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16} and weights.keys() == whole.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, whole[name], atol=0.004, rtol=0.1)


def test_an_adapter_is_no_base(copy: Path, tmp_path: Path) -> None:
    """transformers would load the model that the adapter names, in place of the weights beside it."""
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    for read in (load_model, lambda folder: prepare_base(PolicyConfig(base=str(folder)), [], 0, tmp_path / "target")):
        with pytest.raises(ModelError, match=r"holds an adapter \(adapter_config\.json\).*merge the adapter"):
            read(copy)


def test_a_decoding_that_cannot_be_read_is_not_replaced(copy: Path) -> None:
    (copy / "generation_config.json").write_text('{"max_length": 20,')
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be used"):
        write_serving(copy, Config())
    assert (copy / "generation_config.json").read_text() == '{"max_length": 20,'
