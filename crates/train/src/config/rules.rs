//! Values that parse and cannot run. All that is wrong is told at once, each by its key.

use std::collections::BTreeSet;

use data::source::SourceConfig;
use model::VisionConfig;

use super::{Config, ContrastiveAccumulation, EvaluationConfig, HandOver, OptimConfig, Recovery, Sharding};

/// A rule and what to say where it does not hold.
type Rule = (bool, String);

impl Config {
    /// # Errors
    /// What is wrong, one line each: key and remedy.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut rules = self.data_rules();
        rules.extend(self.model_rules());
        rules.extend(optim_rules("stage1.optim", &self.stage1.optim));
        rules.extend(optim_rules("stage2.optim", &self.stage2.optim));
        rules.extend(self.run_rules());
        rules.extend(evaluation_rules(&self.evaluation));
        rules.push(self.generation_rule());
        rules.extend(split_rules(&self.evaluation));
        rules.extend(reference_rules(&self.evaluation));
        let broken: Vec<String> =
            rules.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem).collect();
        match broken.is_empty() {
            true => Ok(()),
            false => Err(broken.join("\n  ")),
        }
    }

    fn data_rules(&self) -> Vec<Rule> {
        let data = &self.data;
        let cached = data.features.as_ref();
        // Copies of remote shards are kept whether their pictures stream or not.
        let streams =
            SourceConfig { cache: data.source.cache.clone(), ..SourceConfig::default() } != data.source;
        let checked = [data.texts.check(), data.transform.check()].into_iter().filter_map(Result::err);
        let wrong = checked.chain(data.source.problems());
        let mut rules: Vec<Rule> = wrong.map(|error| (false, error.to_string())).collect();
        rules.extend(say([
            ((0.0..=1.0).contains(&data.max_skipped_ratio), "data.max_skipped_ratio must be 0 to 1"),
            (data.max_text_tokens >= 3, "data.max_text_tokens must be at least 3: [CLS], a word piece, [SEP]"),
            (data.train.is_empty() != data.source.sets.is_empty(), "data needs either train or source.sets"),
            (
                cached.is_none() || !streams,
                "data.source is for pictures that stream: leave out [data.features], or name one set by data.train",
            ),
            (cached.is_none_or(|features| features.batch > 0), "data.features.batch must be at least 1"),
            (
                cached.is_some() || !data.group_by_caption,
                "data.group_by_caption needs the captions of all samples, which are kept with [data.features] alone",
            ),
            (
                !(data.group_by_caption && data.group_by_image_id),
                "data.group_by_caption and data.group_by_image_id: choose one",
            ),
        ]));
        rules
    }

    fn model_rules(&self) -> Vec<Rule> {
        let qformer = &self.model.qformer;
        let mut rules = say([
            (
                (0.0..1.0).contains(&qformer.dropout),
                "model.qformer.dropout must be 0 or more and less than 1",
            ),
            (qformer.num_query_tokens > 0, "model.qformer.num_query_tokens must be at least 1"),
            (qformer.cross_attention_freq > 0, "model.qformer.cross_attention_freq must be at least 1"),
            (qformer.projection_size > 0, "model.qformer.projection_size must be at least 1"),
            (self.model.language.max_new_tokens >= 2, "model.language.max_new_tokens must be at least 2"),
        ]);
        let (name, vit) = match &self.model.vision.architecture {
            VisionConfig::EfficientnetLite0 => return rules,
            VisionConfig::EvaVit(vit) => ("eva_vit", vit),
            VisionConfig::ClipVit(vit) => ("clip_vit", vit),
            VisionConfig::Dinov2Vit(vit) => ("dinov2_vit", vit),
        };
        let key = |key: &str| format!("model.vision.architecture.{name}.{key}");
        let sizes = [
            ("img_size", vit.img_size),
            ("patch_size", vit.patch_size),
            ("width", vit.width),
            ("layers", vit.layers),
            ("heads", vit.heads),
        ];
        rules.extend(sizes.map(|(size, value)| (value > 0, format!("{} must be at least 1", key(size)))));
        rules.extend([
            (
                vit.heads <= 0 || vit.width % vit.heads == 0,
                format!("{} = {} must be a multiple of heads = {}", key("width"), vit.width, vit.heads),
            ),
            (
                vit.patch_size <= vit.img_size,
                format!("{} must not be more than img_size = {}", key("patch_size"), vit.img_size),
            ),
            (vit.mlp_ratio > 0.0 && vit.mlp_ratio.is_finite(), format!("{} must be above 0", key("mlp_ratio"))),
            (
                vit.img_size == self.data.transform.image_size as i64,
                format!(
                    "data.transform.image_size = {} must be {} = {}: positions of another size are resized to it",
                    self.data.transform.image_size,
                    key("img_size"),
                    vit.img_size
                ),
            ),
        ]);
        rules
    }

    fn generation_rule(&self) -> Rule {
        let longest = self.model.language.max_new_tokens;
        let generation = &self.evaluation.generation;
        match generation.options(longest, &[]).check() {
            Err(error) => (false, format!("evaluation.generation.{error}")),
            Ok(()) => (
                generation.min_new_tokens <= longest,
                format!(
                    "evaluation.generation.min_new_tokens = {} must not be more than model.language.max_new_tokens = {longest}",
                    generation.min_new_tokens
                ),
            ),
        }
    }

    fn run_rules(&self) -> Vec<Rule> {
        let selects = self.evaluation.splits.iter().any(|split| split.select);
        let bucket = self.distributed.bucket_mib;
        say([
            (
                bucket > 0.0 && bucket <= 65536.0,
                "distributed.bucket_mib must be more than 0 and at most 65536",
            ),
            (
                self.distributed.recovery == Recovery::Restart || self.distributed.sharding == Sharding::None,
                "distributed.recovery = \"regroup\" needs sharding = \"none\": the part of the language model that a dead \
                 rank held is in no other's memory",
            ),
            (
                self.stage1.validate_every_steps == 0 || selects,
                "stage1.validate_every_steps needs a split with select = true: without one there is nothing to score",
            ),
            (
                self.stage2.contrastive_accumulation == ContrastiveAccumulation::None,
                "stage2.contrastive_accumulation must be \"none\": stage 2 contrasts nothing, and accumulates as it is",
            ),
            (
                self.stage2.validate_every_steps == 0,
                "stage2.validate_every_steps must be 0: stage 2 hands over its last step, nothing is chosen",
            ),
            (
                self.stage2.hand_over == HandOver::default(),
                "stage2.hand_over must be left out: stage 2 hands over its last step",
            ),
            (
                self.stage2.optim.word_embedding_lr_ratio.total_cmp(&1.0).is_eq(),
                "stage2.optim.word_embedding_lr_ratio must be left out: no words are trained in stage 2",
            ),
        ])
    }
}

fn say<const N: usize>(rules: [(bool, &str); N]) -> Vec<Rule> {
    rules.map(|(holds, problem)| (holds, problem.to_owned())).into()
}

fn optim_rules(table: &str, optim: &OptimConfig) -> Vec<Rule> {
    let not_negative = |value: f64| value >= 0.0 && value.is_finite();
    let decay = |beta: f64| (0.0..1.0).contains(&beta);
    let rules = [
        (not_negative(optim.peak_lr), "peak_lr must be 0 or more"),
        (optim.min_lr >= 0.0 && optim.min_lr <= optim.peak_lr, "min_lr must be 0 to peak_lr"),
        (not_negative(optim.weight_decay), "weight_decay must be 0 or more"),
        (decay(optim.betas.0) && decay(optim.betas.1), "betas must each be 0 or more and less than 1"),
        (
            optim.max_grad_norm.is_none_or(|norm| norm > 0.0 && norm.is_finite()),
            "max_grad_norm must be above 0; leave it out for no clipping",
        ),
        (not_negative(optim.pretrained_lr_ratio), "pretrained_lr_ratio must be 0 or more"),
        (not_negative(optim.word_embedding_lr_ratio), "word_embedding_lr_ratio must be 0 or more"),
        (
            optim.ema_decay.is_none_or(|decay| decay > 0.0 && decay < 1.0),
            "ema_decay must be between 0 and 1; leave it out for no average",
        ),
    ];
    rules.map(|(holds, problem)| (holds, format!("{table}.{problem}"))).into()
}

fn evaluation_rules(evaluation: &EvaluationConfig) -> Vec<Rule> {
    say([
        (evaluation.rerank_candidates > 0, "evaluation.rerank_candidates must be at least 1"),
        (
            evaluation.rerank_itc_weight >= 0.0 && evaluation.rerank_itc_weight.is_finite(),
            "evaluation.rerank_itc_weight must be 0 or more",
        ),
        (
            evaluation.max_captions > 1,
            "evaluation.max_captions must be at least 2: one picture cannot be shuffled",
        ),
    ])
}

/// A split's name is its key in `eval.json` and in validation records: the second of a name would take the first's place.
fn split_rules(evaluation: &EvaluationConfig) -> Vec<Rule> {
    let mut names = BTreeSet::new();
    let mut rules = Vec::new();
    for (number, split) in evaluation.splits.iter().enumerate() {
        let (key, name) = (format!("evaluation.splits[{number}]"), &split.name);
        rules.push((!name.trim().is_empty(), format!("{key}.name must not be empty")));
        rules.push((
            names.insert(name),
            format!("{key}.name = {name:?} is the name of an earlier split; give each its own"),
        ));
        rules.push((
            !split.shards.is_empty(),
            format!("{key}.shards names no shards; give it some, or leave the split out"),
        ));
    }
    rules
}

/// Rows beside ours in the report, so of splits that stand in it.
fn reference_rules(evaluation: &EvaluationConfig) -> Vec<Rule> {
    let shown = evaluation.splits.iter().filter(|split| !split.hidden);
    let shown: Vec<&str> = shown.map(|split| split.name.as_str()).collect();
    let mut rules = Vec::new();
    for (number, reference) in evaluation.references.iter().enumerate() {
        let key = format!("evaluation.references[{number}]");
        rules.push((
            shown.contains(&reference.split.as_str()),
            format!(
                "{key}.split = {:?} is no split of the report; it has {}",
                reference.split,
                shown.join(", ")
            ),
        ));
        for (way, figures) in [("i2t", Some(reference.i2t)), ("t2i", reference.t2i)] {
            let recalls = figures.is_none_or(|figures| {
                figures.iter().all(|figure| (0.0..=1.0).contains(figure)) && figures.is_sorted()
            });
            rules.push((
                recalls,
                format!("{key}.{way} must be recall at 1, 5 and 10: each 0 to 1, none below the one before; 85 % is 0.85"),
            ));
        }
    }
    rules
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use std::path::Path;

    use super::*;

    /// What is said of a paper's config with these values in place of its own.
    fn said(sets: &[&str]) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/paper_vit_g_opt_2.7b.toml");
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        Config::read(&path, &sets).unwrap().check().err().unwrap_or_default()
    }

    #[test]
    fn every_config_that_we_ship_is_taken() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let configs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(configs.len() >= 10, "{configs:?}");
        for path in configs {
            assert_eq!(Config::read(&path, &[]).unwrap().check(), Ok(()), "{}", path.display());
        }
    }

    #[test]
    fn each_value_that_cannot_run_is_named_by_its_key() {
        assert_eq!(said(&[]), "");
        for (set, key) in [
            ("data.transform.image_size=0", "data.transform.image_size"),
            ("data.transform.image_size=336", "data.transform.image_size = 336 must be"),
            ("data.transform.std=[0.0, 1.0, 1.0]", "data.transform.std"),
            ("data.texts.mixture.label=-1.0", "data.texts.mixture"),
            ("model.vision.architecture.eva_vit.patch_size=0", "eva_vit.patch_size must be at least 1"),
            (
                "model.vision.architecture.eva_vit.heads=7",
                "eva_vit.width = 1408 must be a multiple of heads = 7",
            ),
            ("stage1.optim.peak_lr=nan", "stage1.optim.peak_lr"),
            ("stage2.optim.peak_lr=-1.0", "stage2.optim.peak_lr"),
            ("stage1.optim.min_lr=1.0", "stage1.optim.min_lr"),
            ("stage1.optim.betas=[2.0, 3.0]", "stage1.optim.betas"),
            ("stage1.optim.ema_decay=7.0", "stage1.optim.ema_decay"),
            ("stage2.optim.max_grad_norm=0.0", "stage2.optim.max_grad_norm"),
            ("stage2.optim.weight_decay=-0.1", "stage2.optim.weight_decay"),
            ("stage2.hand_over=last", "stage2.hand_over must be left out"),
            (
                "stage2.optim.word_embedding_lr_ratio=0.5",
                "stage2.optim.word_embedding_lr_ratio must be left out",
            ),
        ] {
            assert!(said(&[set]).contains(key), "{set}: {}", said(&[set]));
        }
    }

    #[test]
    fn splits_references_and_sets_that_cannot_be_are_named_by_their_place() {
        let split = |name: &str, more: &str| format!("{{name = {name:?}, shards = ['x.tar']{more}}}");
        let splits = |all: &[String]| format!("evaluation.splits=[{}]", all.join(", "));
        let selects = split("val", ", select = true");
        let rows = |row: &str| format!("evaluation.references=[{{system = 'ridge', {row}}}]");
        let known = "split = 'coco_val', i2t = [0.1, 0.5, 0.5]";
        assert_eq!(said(&[&rows(known)]), "");
        for (set, key) in [
            (
                splits(&[selects.clone(), split("val", "")]),
                "evaluation.splits[1].name = \"val\" is the name of",
            ),
            (splits(&[selects.clone(), split(" ", "")]), "evaluation.splits[1].name must not be empty"),
            (
                splits(&[selects, "{name = 'test', shards = []}".to_owned()]),
                "evaluation.splits[1].shards names no shards",
            ),
            (
                rows("split = 'coco', i2t = [0.1, 0.2, 0.3]"),
                "[0].split = \"coco\" is no split of the report; it has coco_val",
            ),
            (rows(&known.replace("0.1", "10.0")), "evaluation.references[0].i2t must be"),
            (rows(&known.replace("0.1", "0.6")), "evaluation.references[0].i2t must be"),
            (rows(&format!("{known}, t2i = [0.1, nan, 0.3]")), "evaluation.references[0].t2i must be"),
            (
                "data.source.sets=[{shards = ['x.tar'], ratio = 0.0}]".to_owned(),
                "data.source.sets[0]: its `ratio`",
            ),
            ("data.source.sets=[{}]".to_owned(), "data.source.sets[0]: names no shards"),
            ("data.source.shards_per_block=0".to_owned(), "data.source.shards_per_block: must not be 0"),
            ("data.source.cache.stall_seconds=0".to_owned(), "data.source.cache.stall_seconds: must be"),
        ] {
            assert!(said(&[&set]).contains(key), "{set}: {}", said(&[&set]));
        }
        let hidden = splits(&[split("coco_val", ", select = true, hidden = true")]);
        assert!(said(&[&hidden, &rows(known)]).contains("is no split of the report"), "{}", said(&[&hidden]));
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let said = said(&["stage1.optim.peak_lr=nan", "data.max_text_tokens=1", "evaluation.max_captions=0"]);
        // min_lr is not below a peak that is no number.
        assert_eq!(said.lines().count(), 4, "{said}");
    }
}
