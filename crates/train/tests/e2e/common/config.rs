//! The config of a tiny run, a second or two long.

use super::pictures;

/// Everything is in it that a run can have, but the control without stage 1.
pub const CONFIG: &str = r#"
[run]
name = "tiny"
dir = "run"
seed = 7
device = "cpu"
compute_dtype = "fp32"

[data]
train = ["shards/train-{000000..000001}.tar"]
max_text_tokens = 8

[data.texts.mixture]
label = 0.5
label_and_tags = 0.3
tags = 0.2
max_tags = 2

[data.transform]
image_size = 28

[data.features]
dir = "features"
views = 1
batch = 8

[model.vision]
weights = "weights/vit"

[model.vision.architecture.dinov2_vit]
img_size = 28
patch_size = 14
width = 32
layers = 2
heads = 4
mlp_ratio = 2.0

[model.qformer]
init = "weights/bert"
num_query_tokens = 4
cross_attention_freq = 2
projection_size = 16
dropout = 0.1

[model.language]
weights = "weights/llama"
prompt = "a picture of"
max_new_tokens = 5

[stage1]
steps = 12
global_batch = 12
checkpoint_every_steps = 4
validate_every_steps = 6

[stage1.optim]
peak_lr = 1e-3
min_lr = 1e-4
warmup_steps = 2
weight_decay = 0.05
max_grad_norm = 1.0
pretrained_lr_ratio = 0.5
ema_decay = 0.9

[stage2]
steps = 6
global_batch = 12
micro_batch = 2
checkpoint_every_steps = 2

[stage2.optim]
peak_lr = 1e-3
min_lr = 1e-4
warmup_steps = 2
weight_decay = 0.05

[evaluation]
rerank_candidates = 4
max_captions = 8
without_stage1 = false
gallery = 4

[[evaluation.splits]]
name = "val"
shards = ["shards/val.tar"]
select = true

[[evaluation.splits]]
name = "held_out"
description = "colours and shapes of training in other pairs"
shards = ["shards/held_out.tar"]
"#;

/// Every word of captions, tags and prompt.
pub fn words() -> Vec<&'static str> {
    let mut words = vec!["a", "picture", "of"];
    words.extend(pictures::SIZES);
    words.extend(pictures::COLOURS.map(|(name, _)| name));
    words.extend(pictures::SHAPES);
    words.extend(pictures::TAGS);
    words
}
