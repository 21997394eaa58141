"""Exports well-known network architectures with random weights to ONNX, with data sets.

    python bench/export.py [NAME...]      (in the PyTorch environment: scripts/setup --torch)

The weights are drawn from a fixed seed and batch norms are calibrated on one random batch, so that activations
keep a natural size through the depth. Batch, sequence and (where the network allows it) picture dims are dynamic.
Every model is exported twice, as PyTorch's two exporters write quite unlike graphs: NAME comes from torch.export at
opset 20, NAME-ts from TorchScript at opset 17, whose shapes are chains of Shape, Gather and Concat. Both go to
~/.cache/tongtu/models as scripts/fetch-models does it: model.onnx, meta.json and data sets whose outputs are ONNX
Runtime's, after they were found to agree with PyTorch's.
"""

import argparse
import dataclasses
import fcntl
import inspect
import logging
import os
import pathlib
import shutil
import sys
import warnings

import numpy as np
import onnx
import torch
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))
import onnxdata
import zoo

VERSION = 1
"""Raised when a model or its data sets change; part of every stamp."""

OPSET = 20
TORCHSCRIPT_OPSET = 17
AUTO = torch.export.Dim.AUTO


@dataclasses.dataclass
class Export:
    """What one model needs: the module, the shape of each input, and the data sets."""

    module: nn.Module
    inputs: dict
    """Input name -> set of its dynamic dims."""
    outputs: list
    cases: list
    """Dicts from input name to array; the first must have no dynamic dim of size 0 or 1: export starts from it."""
    external: bool = False
    """Keep the weights in a file of their own beside the model."""


def numbers(seed):
    return np.random.default_rng(seed)


def normal(seed, *shape):
    return numbers(seed).normal(0, 1, shape).astype(np.float32)


def calibrate(module, batch):
    """Set every batch norm's statistics from one batch."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    module.train()
    with torch.no_grad():
        module(batch)
    return module.eval()


def vision(module, size=224, calibrated=False, dynamic=(0,)):
    """A picture classifier: `input` [batch, 3, height, width] to `logits`."""
    module.eval()
    if calibrated:
        calibrate(module, torch.randn(8, 3, size, size))
    cases = [{"input": normal(1, 2, 3, size, size)}, {"input": normal(2, 1, 3, size, size)}]
    if 2 in dynamic:
        cases.append({"input": normal(3, 2, 3, size - 32, size + 64)})
    return Export(module, {"input": set(dynamic)}, ["logits"], cases)


def resnet50():
    import torchvision

    return vision(torchvision.models.resnet50(weights=None), calibrated=True, dynamic=(0, 2, 3))


def mobilenet_v3_large():
    import torchvision

    return vision(torchvision.models.mobilenet_v3_large(weights=None), calibrated=True, dynamic=(0, 2, 3))


def timm_model(name, **options):
    import timm

    return vision(timm.create_model(name, pretrained=False), **options)


def efficientnet_b0():
    return timm_model("efficientnet_b0", calibrated=True, dynamic=(0, 2, 3))


def convnext_tiny():
    return timm_model("convnext_tiny", dynamic=(0, 2, 3))


def vit_b16():
    return timm_model("vit_base_patch16_224")


def swin_tiny():
    return timm_model("swin_tiny_patch4_window7_224")


def token_cases(vocabulary, *shapes):
    """Token ids and attention masks; rows after the first end in padding."""
    cases = []
    for seed, (batch, length) in enumerate(shapes):
        rng = numbers(seed)
        ids = rng.integers(1, vocabulary, (batch, length))
        mask = np.ones((batch, length), np.int64)
        for row in range(1, batch):
            mask[row, length - min(row, length - 1):] = 0
        cases.append((ids, mask))
    return cases


def bidirectional_mask(mask, dtype=torch.float32):
    """Attention mask [batch, length] of 0 and 1 as what is added to the scores."""
    return (1.0 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


class BertBase(nn.Module):
    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertModel

        self.bert = BertModel(BertConfig(attn_implementation="eager"), add_pooling_layer=False)

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.bert(
            input_ids=input_ids,
            attention_mask=bidirectional_mask(attention_mask),
            token_type_ids=token_type_ids,
        ).last_hidden_state


def bert_base():
    cases = [
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": (np.arange(ids.size) % 2).reshape(ids.shape)}
        for ids, mask in token_cases(30522, (2, 16), (1, 128), (3, 33))
    ]
    dims = {"input_ids": {0, 1}, "attention_mask": {0, 1}, "token_type_ids": {0, 1}}
    return Export(BertBase().eval(), dims, ["last_hidden_state"], cases)


def causal_mask(queries, keys, dtype=torch.float32):
    """What is added to the scores when `queries` new positions end a sequence of `keys` positions."""
    places = torch.arange(keys)
    allowed = places[None, :] <= places[keys - queries:, None]
    return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]


class Gpt2(nn.Module):
    """GPT-2 small over new tokens and a cache of any length, an empty one included."""

    def __init__(self):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.config = GPT2Config(attn_implementation="eager")
        self.gpt2 = GPT2LMHeadModel(self.config)

    def forward(self, input_ids, attention_mask, *past):
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(self.config.n_layer):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        before, new = past[0].shape[2], input_ids.shape[1]
        mask = causal_mask(new, before + new) + bidirectional_mask(attention_mask)
        mask = torch.clamp(mask, min=torch.finfo(torch.float32).min)
        places = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, before:]
        result = self.gpt2(input_ids=input_ids, attention_mask=mask, position_ids=places, past_key_values=cache,
                           use_cache=True)
        present = []
        for layer in result.past_key_values.layers:
            present += [layer.keys, layer.values]
        return (result.logits, *present)


def gpt2():
    module = Gpt2().eval()
    layers, heads, size = module.config.n_layer, module.config.n_head, module.config.n_embd // module.config.n_head
    names = [f"{kind}.{layer}.{part}" for kind in ("past", "present") for layer in range(layers)
             for part in ("key", "value")]
    past, present = names[: 2 * layers], names[2 * layers:]
    cases = []
    for seed, (batch, before, new) in enumerate([(2, 6, 4), (1, 0, 16), (1, 31, 1), (3, 12, 1)]):
        rng = numbers(seed)
        case = {"input_ids": rng.integers(0, module.config.vocab_size, (batch, new)),
                "attention_mask": np.ones((batch, before + new), np.int64)}
        if batch == 3:
            case["attention_mask"][1, :5] = 0
        for name in past:
            case[name] = rng.normal(0, 0.5, (batch, heads, before, size)).astype(np.float32)
        cases.append(case)
    dims = {"input_ids": {0, 1}, "attention_mask": {0, 1}} | {name: {0, 2} for name in past}
    return Export(module, dims, ["logits", *present], cases, external=True)


def t5_config():
    from transformers import T5Config

    return T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, vocab_size=32128,
                    decoder_start_token_id=0, attn_implementation="eager")


def t5_model():
    from transformers import T5ForConditionalGeneration

    torch.manual_seed(0)
    return T5ForConditionalGeneration(t5_config()).eval()


class T5Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = t5_model().encoder

    def forward(self, input_ids, attention_mask):
        return self.encoder(input_ids=input_ids, attention_mask=bidirectional_mask(attention_mask)).last_hidden_state


def t5_small_encoder():
    cases = [{"input_ids": ids, "attention_mask": mask}
             for ids, mask in token_cases(32128, (2, 12), (1, 64), (3, 25))]
    dims = {"input_ids": {0, 1}, "attention_mask": {0, 1}}
    return Export(T5Encoder().eval(), dims, ["last_hidden_state"], cases)


class T5Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        model = t5_model()
        self.decoder, self.head, self.scale = model.decoder, model.lm_head, model.config.d_model**-0.5

    def forward(self, decoder_input_ids, encoder_hidden_states, encoder_attention_mask):
        length = decoder_input_ids.shape[1]
        hidden = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=causal_mask(length, length),
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=bidirectional_mask(encoder_attention_mask),
            use_cache=False,
        ).last_hidden_state
        return self.head(hidden * self.scale)


def t5_small_decoder():
    cases = []
    for (ids, _), (source, mask) in zip(token_cases(32128, (2, 5), (1, 20), (3, 9)),
                                        token_cases(32128, (2, 12), (1, 64), (3, 25)), strict=True):
        cases.append({"decoder_input_ids": ids, "encoder_hidden_states": 0.3 * normal(7, *source.shape, 512),
                      "encoder_attention_mask": mask})
    dims = {"decoder_input_ids": {0, 1}, "encoder_hidden_states": {0, 1}, "encoder_attention_mask": {0, 1}}
    return Export(T5Decoder().eval(), dims, ["logits"], cases)


def whisper_model():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, decoder_layers=4,
                           decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536,
                           attn_implementation="eager")
    return WhisperForConditionalGeneration(config).eval()


class WhisperEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = whisper_model().model.encoder

    def forward(self, input_features):
        return self.encoder(input_features).last_hidden_state


def whisper_tiny_encoder():
    cases = [{"input_features": 0.5 * normal(1, 2, 80, 3000)}, {"input_features": 0.5 * normal(2, 1, 80, 3000)}]
    return Export(WhisperEncoder().eval(), {"input_features": {0}}, ["last_hidden_state"], cases)


class WhisperDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        model = whisper_model()
        self.decoder, self.head = model.model.decoder, model.proj_out

    def forward(self, input_ids, encoder_hidden_states):
        length = input_ids.shape[1]
        hidden = self.decoder(
            input_ids=input_ids,
            attention_mask=causal_mask(length, length),
            encoder_hidden_states=encoder_hidden_states,
            position_ids=torch.arange(length)[None].expand(input_ids.shape[0], -1),
            use_cache=False,
        ).last_hidden_state
        return self.head(hidden)


def whisper_tiny_decoder():
    cases = [{"input_ids": ids, "encoder_hidden_states": normal(3 + ids.shape[0], ids.shape[0], 1500, 384)}
             for ids, _ in token_cases(51865, (2, 4), (1, 24))]
    dims = {"input_ids": {0, 1}, "encoder_hidden_states": {0}}
    return Export(WhisperDecoder().eval(), dims, ["logits"], cases)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor

        self.unet = UNet2DConditionModel(
            sample_size=32, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(64, 128, 256),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=256, attention_head_dim=(2, 4, 8), norm_num_groups=32,
        )
        self.unet.set_attn_processor(AttnProcessor())

    def forward(self, sample, timestep, encoder_hidden_states):
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


def unet():
    cases = []
    for seed, (batch, height, width, words) in enumerate([(2, 32, 32, 7), (1, 48, 48, 77), (2, 24, 40, 12)]):
        cases.append({"sample": normal(seed, batch, 4, height, width),
                      "timestep": np.arange(37, 37 + 411 * batch, 411, dtype=np.int64),
                      "encoder_hidden_states": normal(seed + 10, batch, words, 256)})
    dims = {"sample": {0, 2, 3}, "timestep": {0}, "encoder_hidden_states": {0, 1}}
    return Export(UNet().eval(), dims, ["out_sample"], cases)


MODELS = {
    "resnet50": resnet50,
    "mobilenet-v3-large": mobilenet_v3_large,
    "efficientnet-b0": efficientnet_b0,
    "convnext-tiny": convnext_tiny,
    "vit-b16": vit_b16,
    "swin-tiny": swin_tiny,
    "bert-base": bert_base,
    "gpt2": gpt2,
    "t5-small-encoder": t5_small_encoder,
    "t5-small-decoder": t5_small_decoder,
    "whisper-tiny-encoder": whisper_tiny_encoder,
    "whisper-tiny-decoder": whisper_tiny_decoder,
    "unet": unet,
}


def write_dynamo(plan, arguments, path):
    """Export by torch.export."""
    shapes = tuple({dim: AUTO for dim in dims} for dims in plan.inputs.values())
    parameters = inspect.signature(plan.module.forward).parameters.values()
    named = sum(parameter.kind != parameter.VAR_POSITIONAL for parameter in parameters)
    if named < len(parameters):
        shapes = (*shapes[:named], shapes[named:])
    program = torch.onnx.export(
        plan.module, arguments, dynamic_shapes=shapes, input_names=list(plan.inputs), output_names=plan.outputs,
        opset_version=OPSET, dynamo=True, optimize=True, verbose=False,
    )
    program.save(str(path), external_data=plan.external)


def write_torchscript(plan, arguments, path):
    """Export by TorchScript tracing."""
    axes = {key: {dim: f"{key}_{dim}" for dim in dims} for key, dims in plan.inputs.items()}
    torch.onnx.export(
        plan.module, arguments, str(path), dynamic_axes=axes, input_names=list(plan.inputs),
        output_names=plan.outputs, opset_version=TORCHSCRIPT_OPSET, dynamo=False,
    )


WRITERS = {"": write_dynamo, "-ts": write_torchscript}
"""How a model is written, by what its name ends in."""


def export(name, suffix, folder):
    """Export one model into an empty folder."""
    torch.manual_seed(0)
    plan = MODELS[name]() if name in MODELS else zoo.MODELS[name](Export, calibrate)
    arguments = tuple(torch.from_numpy(plan.cases[0][key]) for key in plan.inputs)
    WRITERS[suffix](plan, arguments, folder / "model.onnx")
    runner = onnxdata.session(folder / "model.onnx", 2)
    for case in plan.cases:
        with torch.no_grad():
            expected = plan.module(*(torch.from_numpy(case[key]) for key in plan.inputs))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for output, got, want in zip(plan.outputs, runner.run(None, case), expected, strict=True):
            want = want.numpy()
            error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-6)
            if got.shape != want.shape or error > 1e-3:
                raise ValueError(f"{output}: ONNX Runtime and PyTorch differ by {error:.2e} ({got.shape}, {want.shape})")
    del runner
    onnxdata.add_data_sets(folder, plan.cases, threads=2)
    onnxdata.write_meta(folder, source=f"bench/export.py, random weights, torch {torch.__version__}",
                        licence="Apache-2.0")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to export (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--zoo", action="store_true", help="export the models of bench/zoo.py in place of the others")
    parser.add_argument("--force", action="store_true", help="export again what is already there")
    arguments = parser.parse_args()
    choices = {name + suffix: (name, suffix) for suffix in WRITERS for name in [*MODELS, *zoo.MODELS]}
    if arguments.list:
        print("\n".join(choices))
        return 0
    for name in arguments.names:
        if name not in choices:
            parser.error(f"unknown model '{name}' (see --list)")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    models = onnxdata.cache_dir() / "models"
    models.mkdir(parents=True, exist_ok=True)
    failed = []
    with open(models / ".export.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in arguments.names or [name for name in choices if (choices[name][0] in zoo.MODELS) == arguments.zoo]:
            stamp = f"{onnxdata.FORMAT}.{VERSION} torch {torch.__version__} onnx {onnx.__version__}"
            target = models / name
            if onnxdata.is_current(target, stamp) and not arguments.force:
                continue
            folder = models / f".{name}.new"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                export(*choices[name], folder)
            except Exception as error:
                failed.append(name)
                print(f"error: {name}: {type(error).__name__}: {str(error)[:2000]}", file=sys.stderr, flush=True)
                continue
            onnxdata.finish(folder, stamp)
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
            print(f"exported {name}", flush=True)
    if failed:
        print(f"error: not exported: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
