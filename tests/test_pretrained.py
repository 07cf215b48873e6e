"""Published weights: a plain-torch VideoMAE in its authors' and in Hugging Face's layout gives what ours gives."""

import argparse
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from physrep.config import build
from physrep.encoders.base import tokens
from physrep.encoders.vit import VisionTransformer
from physrep.errors import UserError
from physrep.objectives.jepa import Jepa
from physrep.objectives.masked_latent import MaskedLatent
from physrep.objectives.videomae import VideoMae
from physrep.pretrained import load_pretrained, read_tensors, videomae

WIDTH, DEPTH, HEADS, CELL = 24, 3, 4, (2, 4, 4)


class Plain(nn.Module):
    """VideoMAE's encoder written out: query, key and value apart, biases on queries and values, softmax by hand."""

    def __init__(self, channels=3, eps=1e-6):
        super().__init__()
        self.patch = nn.Conv3d(channels, WIDTH, CELL, CELL)
        names = ["query", "key", "value", "proj", "fc1", "fc2"]
        sizes = dict.fromkeys(names, (WIDTH, WIDTH)) | {"fc1": (WIDTH, 4 * WIDTH), "fc2": (4 * WIDTH, WIDTH)}
        self.linear = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(*sizes[n], bias=n != "key") for n in names}) for _ in range(DEPTH)
        )
        self.norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(WIDTH, eps) for _ in range(2)) for _ in range(DEPTH))
        self.last = nn.LayerNorm(WIDTH, eps)
        for w in self.parameters():
            nn.init.normal_(w, std=0.3)

    def forward(self, clip, keep):
        x = self.patch(clip).flatten(2).mT
        angle = torch.arange(x.shape[1])[:, None] / 10_000 ** (2 * (torch.arange(WIDTH) // 2) / WIDTH)
        place = torch.where(torch.arange(WIDTH) % 2 == 0, angle.sin(), angle.cos())
        x = torch.stack([(x[b] + place)[keep[b]] for b in range(len(x))])
        for layers, (one, two) in zip(self.linear, self.norms, strict=True):
            y, heads = one(x), []
            q, k, v = (layers[n](y) for n in ("query", "key", "value"))
            for i in range(0, WIDTH, WIDTH // HEADS):
                part = slice(i, i + WIDTH // HEADS)
                attention = (q[..., part] @ k[..., part].mT / (WIDTH / HEADS) ** 0.5).softmax(-1)
                heads.append(attention @ v[..., part])
            x = x + layers["proj"](torch.cat(heads, -1))
            x = x + layers["fc2"](nn.functional.gelu(layers["fc1"](two(x))))
        return self.last(x)

    def named(self, table):
        """Its weights by the names of a table: block-wise, with {i} for the block."""
        out = {}
        for i, (layers, norms) in enumerate(zip(self.linear, self.norms, strict=True)):
            owners = {**layers, "norm1": norms[0], "norm2": norms[1]}
            for ours, theirs in table.items():
                if ours in owners:
                    out |= {f"{theirs.format(i=i)}.{k}": w for k, w in owners[ours].named_parameters()}
        for ours, layer in {"patch": self.patch, "last": self.last}.items():
            out |= {f"{table[ours]}.{k}": w for k, w in layer.named_parameters()}
        return {k: w.detach().clone() for k, w in out.items()}


def authors(plain):
    stem = "encoder.blocks.{i}."
    state = plain.named({
        "patch": "encoder.patch_embed.proj", "last": "encoder.norm", "norm1": stem + "norm1", "norm2": stem + "norm2",
        "proj": stem + "attn.proj", "fc1": stem + "mlp.fc1", "fc2": stem + "mlp.fc2",
    })  # fmt: skip
    for i, layers in enumerate(plain.linear):
        at = f"encoder.blocks.{i}.attn."
        state[f"{at}qkv.weight"] = torch.cat([layers[n].weight for n in ("query", "key", "value")]).detach()
        state |= {f"{at}q_bias": layers["query"].bias.detach(), f"{at}v_bias": layers["value"].bias.detach()}
    decoder = {"mask_token": torch.zeros(1, 1, 8), "encoder_to_decoder.weight": torch.zeros(8, WIDTH)}
    return state | decoder | {"decoder.blocks.0.attn.q_bias": torch.ones(8), "decoder.head.weight": torch.ones(9, 8)}


def hugging_face(plain):
    stem = "videomae.encoder.layer.{i}."
    state = plain.named({
        "patch": "videomae.embeddings.patch_embeddings.projection", "last": "videomae.layernorm",
        "norm1": stem + "layernorm_before", "norm2": stem + "layernorm_after",
        "proj": stem + "attention.output.dense", "fc1": stem + "intermediate.dense", "fc2": stem + "output.dense",
    })  # fmt: skip
    for i, layers in enumerate(plain.linear):
        at = f"videomae.encoder.layer.{i}.attention.attention."
        state |= {f"{at}{n}.weight": layers[n].weight.detach().clone() for n in ("query", "key", "value")}
        state |= {f"{at}q_bias": layers["query"].bias.detach(), f"{at}v_bias": layers["value"].bias.detach()}
    head = "decoder.decoder_layers.0.attention.attention."
    return state | {
        f"{head}query.weight": torch.ones(8, 8),
        f"{head}q_bias": torch.ones(8),
        "mask_token": torch.ones(8),
    }


def ours(channels=3, **options):
    options = {"positions": "sinusoid", "depth": DEPTH} | options
    return VisionTransformer(channels, width=WIDTH, heads=HEADS, patch=4, tubelet=2, **options)


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return Plain()


@pytest.fixture
def file(plain, tmp_path):
    place = tmp_path / "videomae.pth"
    torch.save({"model": authors(plain), "epoch": 799, "args": argparse.Namespace(lr=1e-3)}, place)
    return str(place)


@pytest.mark.parametrize("layout", ["authors", "hugging face", "hugging face, encoder alone", "safetensors"])
def test_outputs_are_those_of_the_plain_transformer(layout, tmp_path):
    torch.manual_seed(0)
    plain = Plain(eps=1e-6 if layout == "authors" else 1e-12)
    place = tmp_path / ("model.safetensors" if layout == "safetensors" else "model.bin")
    if layout == "authors":
        torch.save({"model": authors(plain), "args": argparse.Namespace()}, place)
    else:
        state = hugging_face(plain)
        if "alone" in layout:
            state = {k.removeprefix("videomae."): w for k, w in state.items() if k.startswith("videomae.")}
        save_file(state, place) if layout == "safetensors" else torch.save(state, place)
    encoder = ours(weights=str(place))
    clip = torch.randn(2, 3, 4, 8, 12)
    every = torch.arange(12).expand(2, -1)
    keep = torch.tensor([[1, 5, 11], [0, 6, 7]])
    torch.testing.assert_close(tokens(encoder(clip)), plain(clip, every), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.visible(clip, keep), plain(clip, keep), atol=1e-5, rtol=1e-5)
    assert all(not block.attn.qkv.bias[WIDTH : 2 * WIDTH].any() for block in encoder.blocks)


def test_a_runs_own_checkpoint_loads_too(tmp_path):
    run = VideoMae(ours(positions="sincos3d"), channels=3)
    torch.save({"state_dict": run.state_dict(), "physrep": {"config": "0"}}, tmp_path / "last.ckpt")
    again = ours(positions="sincos3d", weights=str(tmp_path / "last.ckpt"))
    for name, weight in run.encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


@pytest.mark.parametrize(("objective", "options"), [(MaskedLatent, {}), (Jepa, {"ema": 0.9, "projection": 8})])
def test_of_a_run_with_a_teacher_the_teacher_is_taken(objective, options, tmp_path):
    run = objective(ours(positions="sincos3d"), **options)
    with torch.no_grad():
        for weight in run.encoder.parameters():
            weight.add_(1)
    torch.save({"state_dict": run.state_dict()}, tmp_path / "last.ckpt")
    again = ours(positions="sincos3d", weights=str(tmp_path / "last.ckpt"))
    clip = torch.randn(2, 3, 4, 8, 8)
    torch.testing.assert_close(tokens(again(clip)), run.eval().encode(clip), rtol=0, atol=0)
    assert not torch.equal(tokens(again(clip)), tokens(run.encoder(clip)))


def test_a_classifier_made_of_videomae_is_refused(tmp_path):
    torch.save({"model": {"fc_norm.weight": torch.ones(3), "head.weight": torch.ones(3)}}, tmp_path / "tuned.pth")
    with pytest.raises(UserError, match="fine-tuned to classify.*; give the checkpoint of its pretraining"):
        ours(weights=str(tmp_path / "tuned.pth"))


def test_other_channels_are_refused_averaged_or_started_anew(plain, file):
    with pytest.raises(UserError, match=r"patch\.weight is \[24, 3, 2, 4, 4\] in the file and \[24, 5, 2, 4, 4\] here"):
        ours(5, weights=file)
    mean = ours(5, weights=file, weights_channels="mean")
    torch.testing.assert_close(mean.patch.weight[:, 2], plain.patch.weight.mean(1) * 3 / 5)
    alike = torch.randn(1, 1, 4, 8, 12)
    torch.testing.assert_close(
        tokens(mean(alike.expand(-1, 5, -1, -1, -1))),
        plain(alike.expand(-1, 3, -1, -1, -1), torch.arange(12)[None]),
        atol=1e-5,
        rtol=1e-5,
    )
    torch.manual_seed(1)
    first = ours(5).patch.weight
    torch.manual_seed(1)
    anew = ours(5, weights=file, weights_channels="reinit")
    assert torch.equal(anew.patch.weight, first)
    assert torch.equal(anew.patch.bias, plain.patch.bias)
    assert torch.equal(anew.norm.weight, plain.last.weight)


def test_equal_channels_are_loaded_as_they_are(plain, file):
    for policy in ("error", "reinit", "mean"):
        assert torch.equal(ours(weights=file, weights_channels=policy).patch.weight, plain.patch.weight)


def test_mistakes_are_said_in_one_line(file, tmp_path):
    with pytest.raises(UserError, match=r"set encoder\.positions=sinusoid"):
        ours(weights=file, positions="sincos3d")
    with pytest.raises(UserError, match=r"lacks blocks\.3\.attn\.proj\.bias and 11 more; choose the encoder"):
        ours(weights=file, depth=4)
    with pytest.raises(UserError, match=r"has unknown blocks\.2\.attn\.proj\.bias and 11 more"):
        ours(weights=file, depth=2)
    with pytest.raises(UserError, match=r"patch\.weight is \[24, 3, 2, 4, 4\] in the file and \[48, 3, 2, 4, 4\] here"):
        VisionTransformer(3, 48, DEPTH, HEADS, 4, 2, "sinusoid", weights=file, weights_channels="mean")
    with pytest.raises(UserError, match=r"patch\.weight is \[24, 3, 2, 4, 4\] in the file and \[24, 3, 2, 8, 8\] here"):
        VisionTransformer(3, WIDTH, DEPTH, HEADS, 8, 2, "sinusoid", weights=file, weights_channels="mean")
    with pytest.raises(UserError, match=r"there is no file nowhere\.pth"):
        ours(weights="nowhere.pth")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 broken"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_files_are_said_in_one_line(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is not a readable checkpoint") as caught:
        read_tensors(str(tmp_path / name))
    assert "\n" not in str(caught.value)


class Command:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-checkpoint",)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Command()}, "bad.pth")
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        read_tensors("bad.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pth"]
    torch.save({"epoch": 3}, "empty.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_tensors("empty.pth")


def test_any_module_by_any_mapping(tmp_path):
    layer = nn.Linear(3, 2)
    save_file({"w": torch.ones(2, 3), "b": torch.zeros(2)}, tmp_path / "layer.safetensors")
    load_pretrained(layer, str(tmp_path / "layer.safetensors"), lambda s: {"weight": s["w"], "bias": s["b"]})
    assert layer.weight.eq(1).all()
    assert layer.bias.eq(0).all()
    assert videomae({"blocks.0.norm1.weight": layer.bias}) == {"blocks.0.norm1.weight": layer.bias}


def test_a_config_reaches_it(plain, file):
    node = {"_target_": "physrep.encoders.vit.VisionTransformer", "width": WIDTH, "depth": DEPTH, "heads": HEADS,
            "patch": 4, "positions": "sinusoid", "weights": file, "weights_channels": "mean"}  # fmt: skip
    encoder = build(node, channels=4)
    assert torch.equal(encoder.norm.bias, plain.last.bias)
