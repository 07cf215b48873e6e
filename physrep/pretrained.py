"""Published weights: read from a file, renamed, fitted to the data's channels, loaded whole."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from physrep.errors import UserError

State = dict[str, Tensor]
Channels = Literal["error", "reinit", "mean"]

WRAPPERS = ("model", "module", "state_dict", "model_state")
OURS = ("teacher.module.0.", "teacher.module.", "encoder.")  # jepa's teacher, masked_latent's, any run's encoder
DECODER = ("decoder.", "encoder_to_decoder.", "mask_token")
HUGGING_FACE = {  # its names for what VideoMAE's authors call otherwise; the longer before what they end in
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "encoder.layer.": "blocks.",
    "attention.attention.": "attn.",
    "attention.output.dense.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "layernorm.": "norm.",
}


def load_pretrained(
    module: nn.Module, path: str, mapping: Callable[[State], State], channels: Channels = "error"
) -> None:
    """Load all weights of a module from a checkpoint, whose names `mapping` makes the module's.

    Where only the input channels of a kernel [D, C, *K] differ, `channels` decides: refuse, keep the module's own
    initialisation, or give every channel the file's mean kernel, scaled so that the sum over channels stays. Raises
    UserError for a file that is missing or damaged and for weights that are missing, unknown or of another size.
    """
    state, own = mapping(read_tensors(path)), module.state_dict()
    for verb, names in {"lacks": own.keys() - state.keys(), "has unknown": state.keys() - own.keys()}.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"encoder.weights: {path} {verb} {min(names)}{more}; choose the encoder it was trained as")
    for name, made in own.items():
        state[name] = fit_channels(state[name], made, channels, f"encoder.weights: {path}: {name}")
    module.load_state_dict(state)


def fit_channels(read: Tensor, made: Tensor, channels: Channels, where: str) -> Tensor:
    """Return what to load where the module has `made`; UserError if more than a kernel's input channels differ."""
    if read.shape == made.shape:
        return read
    shapes = f"{list(read.shape)} in the file and {list(made.shape)} here"
    if read.ndim != made.ndim or read.ndim < 3 or read[:, 0].shape != made[:, 0].shape:
        raise UserError(f"{where} is {shapes}; choose the encoder it was trained as")
    if channels == "error":
        raise UserError(f"{where} is {shapes}, of other channels; set encoder.weights_channels=mean or reinit")
    if channels == "reinit":
        return made
    return (read.sum(1, keepdim=True) / made.shape[1]).expand(made.shape)


def read_tensors(path: str) -> State:
    """Return the tensors of a .safetensors file or a torch checkpoint by name, on the CPU, without what wraps them.

    Nothing but tensors and plain values is unpickled. Raises UserError where the file is missing, damaged or empty.
    """
    if not Path(path).is_file():
        raise UserError(f"encoder.weights: there is no file {path}; give the path of a checkpoint")
    held: Any
    try:
        if path.endswith(".safetensors"):
            held = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # the options that VideoMAE keeps beside
                held = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, BadZipFile, pickle.UnpicklingError, KeyError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"encoder.weights: {path} is not a readable checkpoint ({reason}); fetch it again") from error
    while isinstance(held, Mapping) and (inner := next((held[k] for k in WRAPPERS if k in held), None)) is not None:
        held = inner
    tensors = {k: v for k, v in held.items() if isinstance(v, Tensor)} if isinstance(held, Mapping) else {}
    if not tensors:
        raise UserError(f"encoder.weights: {path} holds no tensors by name; give the path of a checkpoint")
    return tensors


def videomae(state: State) -> State:
    """Name a VideoMAE encoder's weights as VisionTransformer does; takes the authors' layout, Hugging Face's or ours.

    The decoder is left out, and of our runs all but the encoder that probes get, a teacher's where there is one.
    Queries, keys and values become one layer, and so do their biases, the keys' being zero. UserError for a fine-tuned
    model.
    """
    if any(name.endswith("fc_norm.weight") for name in state):
        raise UserError("encoder.weights: is a model fine-tuned to classify, without the encoder's last norm; give the "
                        "checkpoint of its pretraining")  # fmt: skip
    if any("attention.attention." in name for name in state):
        state = {n.removeprefix("videomae."): x for n, x in state.items() if not n.startswith(DECODER)}
        for theirs, ours in HUGGING_FACE.items():
            state = {n.replace(theirs, ours): x for n, x in state.items()}
    elif at := next((p for p in OURS if any(name.startswith(p) for name in state)), None):
        state = {n.removeprefix(at): x for n, x in state.items() if n.startswith(at)}
    state = {n.replace("patch_embed.proj.", "patch."): x for n, x in state.items()}
    for stem in {n[: n.index("attn.")] + "attn." for n in state if "attn." in n}:
        _merge(state, [f"{stem}{each}.weight" for each in ("query", "key", "value")], f"{stem}qkv.weight")
        if f"{stem}q_bias" in state:
            state[f"{stem}k_bias"] = torch.zeros_like(state[f"{stem}q_bias"])
            _merge(state, [f"{stem}{each}_bias" for each in "qkv"], f"{stem}qkv.bias")
    return state


def _merge(state: State, names: list[str], into: str) -> None:
    if all(name in state for name in names):
        state[into] = torch.cat([state.pop(name) for name in names])
