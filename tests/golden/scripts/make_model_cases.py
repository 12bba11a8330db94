"""Writes the reference cases of frozen models that the peers' parity set does not have.

Run with torch 2.11.0 (CPU, one thread), transformers 5.23.0 and, for EfficientNet-Lite0, the sources of PyPI
efficientnet-lite-pytorch 0.1.0:

    python make_model_cases.py OUT_FOLDER
"""

import json
import os
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)


def redraw(model, seed):
    """Large asymmetric weights: a swapped norm, a missing bias or a wrong mask shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            scale = 0.3 if parameter.ndim > 1 else 0.4
            offset = 1.0 if "norm" in name and name.endswith("weight") or "lambda" in name else 0.1
            if parameter.ndim > 1:
                offset = 0.01
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def write(folder, weights, inputs, expected, case, config=None, expected_json=None):
    os.makedirs(folder, exist_ok=True)
    contiguous = lambda tensors: {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    if weights is not None:
        save_file(contiguous(weights), f"{folder}/weights.safetensors", metadata={"format": "pt"})
    if inputs:
        save_file(contiguous(inputs), f"{folder}/inputs.safetensors")
    save_file(contiguous(expected), f"{folder}/expected.safetensors")
    if config is not None:
        with open(f"{folder}/config.json", "w") as file:
            json.dump(config, file, indent=1, sort_keys=True)
    if expected_json is not None:
        with open(f"{folder}/expected.json", "w") as file:
            json.dump(expected_json, file)
    with open(f"{folder}/case.toml", "w") as file:
        file.write(case)


def telling_eos(rows):
    """The two end tokens that give the rows the most different lengths."""
    def lengths(pair):
        return {min([row.index(t) for t in pair if t in row], default=len(row)) for row in rows}
    tokens = sorted({token for row in rows for token in row})
    pairs = [[a, b] for a in tokens for b in tokens if a < b]
    return max(pairs, key=lambda pair: (len(lengths(pair)), sum(lengths(pair))))


def language(folder, model, vocab, tie, source, seed):
    """Forward with gradient (right padding) and greedy captions (left padding), both from embeddings."""
    generator = torch.Generator().manual_seed(seed)
    width = model.get_input_embeddings().weight.shape[1]
    batch, tokens = 3, 9
    embeds = (0.3 * torch.randn(batch, tokens, width, generator=generator)).requires_grad_()
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[1, 6:] = 0
    mask[2, 8:] = 0
    logits = model(inputs_embeds=embeds, attention_mask=mask).logits
    cotangent = torch.randn(logits.shape, generator=generator) * mask.unsqueeze(-1)
    (logits * cotangent).sum().backward()
    prompt_ids = torch.randint(3, vocab, (4, 7), generator=generator)
    prompt_mask = torch.ones(4, 7, dtype=torch.long)
    prompt_mask[1, :3] = 0
    prompt_mask[3, :1] = 0
    plain = model.generate(inputs_embeds=model.get_input_embeddings()(prompt_ids), attention_mask=prompt_mask,
                           max_new_tokens=16, do_sample=False, eos_token_id=vocab + 1, pad_token_id=1)
    eos = telling_eos(plain.tolist())
    generated = model.generate(inputs_embeds=model.get_input_embeddings()(prompt_ids), attention_mask=prompt_mask,
                               max_new_tokens=16, do_sample=False, eos_token_id=eos, pad_token_id=1)
    captions = []
    for row in generated.tolist():
        ends = [i for i, token in enumerate(row) if token in eos]
        captions.append(row[: ends[0]] if ends else row)
    weights = {k: v for k, v in model.state_dict().items() if not (tie and k == "lm_head.weight")}
    expected = {"logits": logits, "grad.embeds": embeds.grad}
    inputs = {"embeds": embeds, "mask": mask, "cotangent": cotangent,
              "prompt_ids": prompt_ids, "prompt_mask": prompt_mask}
    case = f"""[case]
name = "{os.path.basename(folder)}"
source = "{source}"
script = "scripts/make_model_cases.py"
seed = {seed}

[tolerance]
tensor_abs = 2e-05
tensor_rel = 0.0001
grad_abs = 2e-05
grad_rel = 0.001
"""
    write(folder, weights, inputs, expected, case, model.config.to_dict(), {"eos": eos, "captions": captions})


def llama(out):
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, tie, heads, groups, seed in [("language_llama", False, 6, 2, 11), ("language_llama_tied", True, 4, 1, 12)]:
        config = LlamaConfig(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
                             num_attention_heads=heads, num_key_value_heads=groups, head_dim=8, rms_norm_eps=1e-5,
                             max_position_embeddings=64, tie_word_embeddings=tie,
                             rope_parameters={"rope_type": "default", "rope_theta": 500.0},
                             attn_implementation="eager")
        language(f"{out}/{name}", redraw(LlamaForCausalLM(config), seed), 97, tie, "transformers 5.23.0, torch 2.11.0", seed)


def opt(out):
    from transformers import OPTConfig, OPTForCausalLM

    for name, before, projection, seed in [("language_opt", True, 40, 21), ("language_opt_post_norm", False, 24, 23)]:
        config = OPTConfig(vocab_size=101, hidden_size=40, num_hidden_layers=3, ffn_dim=72, num_attention_heads=5,
                           max_position_embeddings=48, do_layer_norm_before=before, word_embed_proj_dim=projection,
                           dropout=0.0, attn_implementation="eager")
        model = redraw(OPTForCausalLM(config), seed)
        if not before:  # else the last norm's bias alone decides every token
            with torch.no_grad():
                model.get_input_embeddings().weight.mul_(5.0)
                for layer in model.model.decoder.layers:
                    layer.final_layer_norm.bias.mul_(0.1)
                    layer.self_attn_layer_norm.bias.mul_(0.1)
        language(f"{out}/{name}", model, 101, True, "transformers 5.23.0, torch 2.11.0", seed)


def dinov2(out):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=4, image_size=70,
                          patch_size=14, attn_implementation="eager")
    model = redraw(Dinov2Model(config), 31)
    image = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(32))
    hidden = model(image, output_hidden_states=True).hidden_states
    case = """[case]
name = "vision_dinov2"
source = "transformers 5.23.0, torch 2.11.0"
script = "scripts/make_model_cases.py"
seed = 31

[vision]
img_size = 42
patch_size = 14
width = 48
layers = 3
heads = 4

[tolerance]
tensor_abs = 2e-05
tensor_rel = 0.0001
"""
    with tempfile.TemporaryDirectory() as saved:  # files keep their names, which modules do not
        model.save_pretrained(saved)
        weights = load_file(f"{saved}/model.safetensors")
    write(f"{out}/vision_dinov2", weights, {"image": image}, {"hidden_states_m2": hidden[-2]}, case)


def formula(name, shape):
    """Weights too large to keep: a formula instead. The name's bytes make each tensor another."""
    phase = float(sum(name.encode()))
    wave = torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.7 + phase)
    if name.endswith("running_var"):
        return (1.0 + 0.5 * wave).float().view(shape)
    if name.endswith("running_mean") or name.endswith(".bias"):
        return (0.2 * wave + 0.1).float().view(shape)
    if len(shape) == 1:
        return (1.0 + 0.3 * wave).float().view(shape)
    fan_in = torch.Size(shape[1:]).numel()
    return (wave * 2.0 / fan_in**0.5).float().view(shape)


def efficientnet(out):
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0").eval()
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if not name.endswith("num_batches_tracked"):
                tensor.copy_(formula(name, tuple(tensor.shape)))
    expected = {}
    with torch.no_grad():
        for side in (224, 96):
            pixels = torch.sin(torch.arange(2 * 3 * side * side, dtype=torch.float64) * 0.013).float()
            x = model._swish(model._bn0(model._conv_stem(pixels.view(2, 3, side, side))))
            for block in model._blocks:
                x = block(x)
            expected[f"features.{side}"] = x.flatten(2).transpose(1, 2)
    case = """[case]
name = "vision_efficientnet_lite0"
source = "efficientnet-lite-pytorch 0.1.0, torch 2.11.0"
script = "scripts/make_model_cases.py"
weights = "by formula, see the script"

[tolerance]
tensor_abs = 2e-05
tensor_rel = 0.0001
"""
    write(f"{out}/vision_efficientnet_lite0", None, None, expected, case)


if __name__ == "__main__":
    llama(sys.argv[1])
    opt(sys.argv[1])
    dinov2(sys.argv[1])
    efficientnet(sys.argv[1])
