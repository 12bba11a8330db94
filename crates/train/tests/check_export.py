#!/usr/bin/env python3
"""check_export.py EXPORT CASE: does transformers compute from the folder EXPORT what we computed?

CASE is a safetensors file: `pixel_values`, and for a stage 2 `prompt_ids`, `text_ids`, our `logits` of
[queries, text] and our greedy `tokens`; for a stage 1 `text_ids`, `text_mask`, our `itm` and `itc` scores.
Exit code 0 when all agree within 1e-4, 1 when not, 77 when torch or transformers is not installed.
"""
import sys

try:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

LIMIT = 1e-4


def load(architecture, folder):
    """The model in fp32; every parameter must come from the file."""
    model, info = architecture.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            sys.exit(f"{kind}: {sorted(info[kind])}")
    return model.eval()


def compare(name, theirs, ours):
    """Prints the largest difference and ends when it is too large."""
    worst = (theirs - ours).abs().max().item()
    print(f"{name}: {list(ours.shape)}, largest difference {worst:.2e}, largest value {ours.abs().max():.3f}")
    if not worst <= LIMIT:
        sys.exit(f"{name} differ by more than {LIMIT}")


def check_processor(folder, config, text):
    """Pictures and a text as transformers prepares them for this model."""
    try:
        from PIL import Image
        from transformers import Blip2Processor

        processor = Blip2Processor.from_pretrained(folder)
    except ImportError as missing:
        print(f"processor not tried: {missing}")
        return
    made = processor(images=Image.new("RGB", (40, 30), "red"), text=text, return_tensors="pt")
    side = config.vision_config.image_size
    if made["pixel_values"].shape != (1, 3, side, side):
        sys.exit(f"the processor makes {made['pixel_values'].shape} of a picture")
    places = (made["input_ids"] == config.image_token_index).sum().item() if config.image_token_index else 0
    wanted = config.num_query_tokens if config.image_token_index else 0
    print(f"processor: {made['input_ids'].tolist()}")
    if places != wanted:
        sys.exit(f"the processor makes {places} places for an image, {wanted} are needed")


def check_stage2(folder, case):
    model = load(Blip2ForConditionalGeneration, folder)
    config = model.config
    check_processor(folder, config, "a picture of")
    images = torch.full((len(case["pixel_values"]), config.num_query_tokens), config.image_token_index)
    prompt = torch.cat([images, case["prompt_ids"].expand(len(images), -1)], 1)
    ids = torch.cat([images, case["text_ids"]], 1)
    logits = model(pixel_values=case["pixel_values"], input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    ours = case["logits"]
    compare("logits", logits[..., : ours.shape[-1]], ours)
    wanted = [row[row >= 0].tolist() for row in case["tokens"]]
    rows = model.generate(
        pixel_values=case["pixel_values"],
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=case["tokens"].shape[1],
    )
    end = config.text_config.eos_token_id
    found = []
    for row in rows[:, prompt.shape[1] :].tolist():
        found.append(row[: row.index(end)] if end in row else row)
    print(f"greedy tokens: {found}")
    if found != wanted:
        sys.exit(f"ours are {wanted}")


def check_stage1(folder, case):
    model = load(Blip2ForImageTextRetrieval, folder)
    check_processor(folder, model.config, "a picture")
    inputs = {
        "pixel_values": case["pixel_values"],
        "input_ids": case["text_ids"],
        "attention_mask": case["text_mask"],
    }
    itm = model(**inputs, use_image_text_matching_head=True).logits_per_image
    compare("itm logits", itm[:, 1], case["itm"])
    compare("itc similarities", model(**inputs).logits_per_image, case["itc"])


def main():
    folder, case = sys.argv[1], load_file(sys.argv[2])
    architecture = AutoConfig.from_pretrained(folder).architectures[0]
    with torch.no_grad():
        (check_stage2 if architecture == "Blip2ForConditionalGeneration" else check_stage1)(folder, case)


if __name__ == "__main__":
    main()
