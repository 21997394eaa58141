"""More architectures for bench/export.py --zoo: small ones, many kinds, to see that what works is the kind and not
the list. Their names begin with `zoo-`."""

import numpy as np
import torch
from torch import nn


def _pictures(*shapes):
    return [{"input": np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)}
            for seed, shape in enumerate(shapes)]


class First(nn.Module):
    """A model reduced to one tensor of its result."""

    def __init__(self, model, key=None, **fixed):
        super().__init__()
        self.model, self.key, self.fixed = model, key, fixed

    def forward(self, *inputs):
        result = self.model(*inputs, **self.fixed)
        if self.key is not None:
            return result[self.key]
        return result[0] if isinstance(result, (tuple, list)) else result


class Named(nn.Module):
    """A transformers model called with named inputs, reduced to its first output."""

    def __init__(self, model, names, **fixed):
        super().__init__()
        self.model, self.names, self.fixed = model, names, fixed

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs, strict=True)), **self.fixed, return_dict=False)[0]


class RmsNorm(nn.Module):
    """As most checkpoints' own code writes it."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class RotaryDecoder(nn.Module):
    """A Llama-like decoder layer stack: rotary positions, grouped queries, RMS norm, gated MLP, growing cache."""

    def __init__(self, vocabulary=200, hidden=64, heads=4, groups=2, layers=2, size=16, base=10000.0):
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, size
        self.embed = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(nn.ModuleDict({
                "n1": RmsNorm(hidden), "n2": RmsNorm(hidden),
                "q": nn.Linear(hidden, heads * size, bias=False), "k": nn.Linear(hidden, groups * size, bias=False),
                "v": nn.Linear(hidden, groups * size, bias=False), "o": nn.Linear(heads * size, hidden, bias=False),
                "gate": nn.Linear(hidden, 3 * hidden, bias=False), "up": nn.Linear(hidden, 3 * hidden, bias=False),
                "down": nn.Linear(3 * hidden, hidden, bias=False),
            }))
        self.norm = RmsNorm(hidden)
        self.register_buffer("rates", base ** (-torch.arange(0, size, 2) / size))

    def rotate(self, x, places):
        angles = places[:, None].float() * self.rates
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    def forward(self, tokens, *past):
        batch, new = tokens.shape
        before = past[0].shape[2]
        places = torch.arange(before, before + new)
        hidden_from = torch.arange(before + new)[None, :] > places[:, None]
        x, present = self.embed(tokens), []
        for number, layer in enumerate(self.layers):
            n = layer["n1"](x)
            q = layer["q"](n).view(batch, new, self.heads, self.size).transpose(1, 2)
            k = layer["k"](n).view(batch, new, self.groups, self.size).transpose(1, 2)
            v = layer["v"](n).view(batch, new, self.groups, self.size).transpose(1, 2)
            k = torch.cat([past[2 * number], self.rotate(k, places)], 2)
            v = torch.cat([past[2 * number + 1], v], 2)
            present += [k, v]
            each = self.heads // self.groups
            scores = self.rotate(q, places) @ k.repeat_interleave(each, 1).transpose(2, 3) * self.size**-0.5
            scores = scores.masked_fill(hidden_from, float("-inf"))
            y = (scores.softmax(-1) @ v.repeat_interleave(each, 1)).transpose(1, 2).reshape(batch, new, -1)
            x = x + layer["o"](y)
            n = layer["n2"](x)
            x = x + layer["down"](nn.functional.silu(layer["gate"](n)) * layer["up"](n))
        return (self.norm(x) @ self.embed.weight.T, *present)


def rotary_decoder(Export):
    module = RotaryDecoder().eval()
    names = [f"past.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    cases = []
    for seed, (batch, before, new) in enumerate([(2, 5, 3), (1, 0, 8), (3, 20, 1)]):
        rng = np.random.default_rng(seed)
        case = {"tokens": rng.integers(0, 200, (batch, new))}
        for name in names:
            case[name] = rng.normal(0, 1, (batch, 2, before, 16)).astype(np.float32)
        cases.append(case)
    return Export(module, {"tokens": {0, 1}} | {name: {0, 2} for name in names},
                  ["logits", *(name.replace("past", "present") for name in names)], cases)


def torchvision_model(name, size=96, sizes=True, **options):
    def make(Export, calibrate):
        import torchvision

        if "googlenet" in name or "inception" in name:
            options["init_weights"] = True
        module = torchvision.models.get_model(name, weights=None, **options).eval()
        if options.get("aux_logits") is None and hasattr(module, "aux_logits"):
            module.aux_logits = False
        key = "out" if "segmentation" in type(module).__module__ else None
        calibrate(module, torch.randn(8, 3, size, size))
        shapes = [(2, 3, size, size), (1, 3, size, size)] + ([(2, 3, size + 32, size + 64)] if sizes else [])
        dims = {0, 2, 3} if sizes else {0}
        return Export(First(module, key).eval(), {"input": dims}, ["output"], _pictures(*shapes))

    return make


def timm_model(name, size=224, sizes=False, **options):
    def make(Export, calibrate):
        import timm

        module = timm.create_model(name, pretrained=False, **options).eval()
        calibrate(module, torch.randn(4, 3, size, size))
        shapes = [(2, 3, size, size), (1, 3, size, size)] + ([(2, 3, size + 32, size + 64)] if sizes else [])
        return Export(module, {"input": {0, 2, 3} if sizes else {0}}, ["output"], _pictures(*shapes))

    return make


def transformers_text(kind, **sizes):
    """An encoder, or a decoder run without a cache, over token ids and an attention mask."""

    def make(Export, _):
        import transformers

        config = transformers.AutoConfig.for_model(kind, vocab_size=300, attn_implementation="eager", **sizes)
        module = transformers.AutoModel.from_config(config).eval()
        fixed = {"use_cache": False} if kind in ("gpt_neox", "llama", "qwen2", "gemma", "opt", "bloom") else {}
        cases = []
        for seed, (batch, length) in enumerate([(2, 12), (1, 30), (3, 7)]):
            ids = np.random.default_rng(seed).integers(3, 300, (batch, length))
            mask = np.ones_like(ids)
            for row in range(1, batch):
                mask[row, length - row:] = 0
            cases.append({"input_ids": ids, "attention_mask": mask})
        return Export(Named(module, ["input_ids", "attention_mask"], **fixed).eval(),
                      {"input_ids": {0, 1}, "attention_mask": {0, 1}}, ["last_hidden_state"], cases)

    return make


def vision_transformer(kind, size=64, **sizes):
    def make(Export, _):
        import transformers

        config = transformers.AutoConfig.for_model(kind, image_size=size, **sizes)
        module = transformers.AutoModel.from_config(config).eval()
        shapes = [(2, 3, size, size), (1, 3, size, size)]
        cases = [{"pixel_values": case["input"]} for case in _pictures(*shapes)]
        return Export(Named(module, ["pixel_values"]).eval(), {"pixel_values": {0}}, ["hidden"], cases)

    return make


def wav2vec2(Export, _):
    import transformers

    config = transformers.Wav2Vec2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                         intermediate_size=128, conv_dim=(32,) * 7, vocab_size=40,
                                         num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
                                         attn_implementation="eager")
    module = transformers.Wav2Vec2Model(config).eval()
    cases = [{"input_values": np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)}
             for seed, shape in enumerate([(2, 4000), (1, 9000), (3, 2500)])]
    return Export(Named(module, ["input_values"]).eval(), {"input_values": {0, 1}}, ["hidden"], cases)


def autoencoder(Export, _):
    from diffusers import AutoencoderKL
    from diffusers.models.attention_processor import AttnProcessor

    module = AutoencoderKL(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
                           up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, latent_channels=4).eval()
    module.set_attn_processor(AttnProcessor())
    module.forward = lambda latent: module.decode(latent, return_dict=False)[0]
    cases = [{"latent": case["input"]} for case in _pictures((2, 4, 16, 16), (1, 4, 24, 20))]
    return Export(module, {"latent": {0, 2, 3}}, ["sample"], cases)


class Recurrent(nn.Module):
    """A two-layer bidirectional LSTM, a GRU, and 1-d convolutions, as speech and text models stack them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(20, 32, 5, padding=2)
        self.lstm = nn.LSTM(32, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(48, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        y = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        y = self.lstm(y)[0]
        return self.head(self.gru(y)[0]).log_softmax(-1)


def recurrent(Export, _):
    cases = [{"x": np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)}
             for seed, shape in enumerate([(2, 11, 20), (1, 30, 20), (3, 5, 20)])]
    return Export(Recurrent().eval(), {"x": {0, 1}}, ["log_probability"], cases)


class Detector(nn.Module):
    """A one-stage detector's tail: boxes decoded from a grid, scores sorted, the best kept."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(),
                                  nn.Conv2d(32, 32, 3, 2, 1), nn.SiLU())
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(32, 9, 3, padding=1)

    def forward(self, image):
        y = self.head(self.up(self.stem(image)))
        batch, _, height, width = y.shape
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack((columns, rows), 0)[None].float()
        centre = (y[:, :2].sigmoid() * 2 - 0.5 + grid) * 4
        extent = (y[:, 2:4].sigmoid() * 2) ** 2 * 16
        boxes = torch.cat((centre - extent / 2, centre + extent / 2), 1).flatten(2).transpose(1, 2)
        # Scores far apart: the order of near ties is nobody's promise.
        scores = (4 * y[:, 4:]).sigmoid().flatten(2).amax(1)
        best, index = scores.topk(20, 1)
        return boxes.gather(1, index[..., None].expand(-1, -1, 4)), best


def detector(Export, _):
    return Export(Detector().eval(), {"input": {0, 2, 3}}, ["boxes", "scores"],
                  _pictures((2, 3, 64, 64), (1, 3, 96, 128)))


MODELS = {
    "zoo-rotary-decoder": lambda Export, _: rotary_decoder(Export),
    "zoo-densenet121": torchvision_model("densenet121"),
    "zoo-shufflenet": torchvision_model("shufflenet_v2_x0_5"),
    "zoo-squeezenet": torchvision_model("squeezenet1_1"),
    "zoo-googlenet": torchvision_model("googlenet", aux_logits=False),
    "zoo-regnet": torchvision_model("regnet_y_400mf"),
    "zoo-mnasnet": torchvision_model("mnasnet0_5"),
    "zoo-mobilenet-v2": torchvision_model("mobilenet_v2"),
    "zoo-lraspp": torchvision_model("lraspp_mobilenet_v3_large", weights_backbone=None),
    "zoo-mobilevit": timm_model("mobilevit_xxs", size=256),
    "zoo-ghostnet": timm_model("ghostnet_100", size=96, sizes=True),
    "zoo-mixer": timm_model("mixer_s32_224", num_classes=0),
    "zoo-poolformer": timm_model("poolformer_s12", size=96, sizes=True),
    "zoo-repvgg": timm_model("repvgg_a0", size=96, sizes=True),
    "zoo-efficientformer": timm_model("efficientformer_l1"),
    "zoo-distilbert": transformers_text("distilbert", dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    "zoo-roberta": transformers_text("roberta", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=128),
    "zoo-albert": transformers_text("albert", hidden_size=64, embedding_size=32, num_hidden_layers=2,
                                    num_attention_heads=4, intermediate_size=128),
    "zoo-electra": transformers_text("electra", hidden_size=64, embedding_size=32, num_hidden_layers=2,
                                     num_attention_heads=4, intermediate_size=128),
    "zoo-mpnet": transformers_text("mpnet", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                   intermediate_size=128),
    "zoo-deberta": transformers_text("deberta-v2", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=128, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "zoo-llama": transformers_text("llama", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                   num_key_value_heads=2, intermediate_size=128),
    "zoo-qwen2": transformers_text("qwen2", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                   num_key_value_heads=2, intermediate_size=128),
    "zoo-opt": transformers_text("opt", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128,
                                 word_embed_proj_dim=64),
    "zoo-bloom": transformers_text("bloom", hidden_size=64, n_layer=2, n_head=4),
    "zoo-deit": vision_transformer("deit", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                   intermediate_size=128, patch_size=16),
    "zoo-dinov2": vision_transformer("dinov2", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                     patch_size=16),
    "zoo-segformer": vision_transformer("segformer", hidden_sizes=[16, 32, 40, 64]),
    "zoo-wav2vec2": wav2vec2,
    "zoo-autoencoder": autoencoder,
    "zoo-recurrent": recurrent,
    "zoo-detector": detector,
}
