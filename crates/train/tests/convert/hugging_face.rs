//! What a Hugging Face folder holds beside plain weights.

use super::*;

#[test]
fn what_transformers_has_no_place_for_lies_beside() {
    let place = Place::new();
    let original = weights("stage1_eva");
    let source = place.pth("lavis.pth", &original);
    import(&source, &place.path("ours"), Some(&place.config("stage1_eva")), &quiet).unwrap();
    let folder = place.export(&place.path("ours"), "hf", Form::HuggingFace);
    let extras = all_of(&folder.join("blip2_extras"));
    assert_eq!(extras["temperature"], original["temp"]);
    assert_eq!(extras["cls.predictions.bias"], original["Qformer.cls.predictions.bias"]);
    assert_eq!(extras.len(), 6, "{:?}", extras.keys());
    let config = json_of(&folder.join("config.json"));
    assert_eq!(config["architectures"], json!(["Blip2ForImageTextRetrieval"]));
    assert_eq!(config["qformer_config"]["use_qformer_text_input"], true);
    // and is taken back in, so that nothing is lost on the way through transformers' form
    import(&folder, &place.path("back"), None, &quiet).unwrap();
    assert_same(&all_of(&place.path("back/bridge")), &all_of(&place.path("ours/bridge")));
    let lavis = place.export(&place.path("back"), "back.pth", Form::LavisWhole);
    assert_same(&pth_tensors(&lavis), &original);
    // without it, whoever exports to LAVIS's form is told what is not there
    fs::remove_dir_all(folder.join("blip2_extras")).unwrap();
    import(&folder, &place.path("poorer"), None, &quiet).unwrap();
    let said = std::cell::RefCell::new(Vec::new());
    let poorer = Export {
        source: place.path("poorer"),
        dest: place.path("poorer.pth"),
        form: Form::Lavis,
        vision: None,
        language: None,
        shard_bytes: 1 << 30,
    };
    export(&poorer, &|line| said.borrow_mut().push(line.to_owned())).unwrap();
    assert!(
        said.borrow().iter().any(|line| line.contains("temp") && line.contains("cls.predictions")),
        "{said:?}"
    );
}

/// An OPT's own end of text is `</s>`; captions end by a newline, and so must what transformers generates.
#[test]
fn an_opt_ends_in_transformers_where_its_captions_end_in_training() {
    const TOKENIZER: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "added_tokens": [],
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "." }, "behavior": "Isolated", "invert": false },
        "model": { "type": "WordLevel", "vocab": {"<s>": 0, "</s>": 2, "a": 5, "\n": 7}, "unk_token": "a" }
    }"#;
    let place = Place::new();
    let source = place.pth("lavis.pth", &weights("stage2_opt_noprompt"));
    import(&source, &place.path("ours"), Some(&place.config("opt")), &quiet).unwrap();
    fs::write(place.path("ours/language/tokenizer.json"), TOKENIZER).unwrap();
    let folder = place.export(&place.path("ours"), "hf", Form::HuggingFace);
    assert_eq!(json_of(&folder.join("config.json"))["text_config"]["eos_token_id"], 7);
    assert_eq!(json_of(&folder.join("generation_config.json"))["eos_token_id"], 7);
}

#[test]
fn an_encoder_with_an_activation_that_ours_has_not_is_refused() {
    let place = Place::new();
    let file = place.pth("clip.pth", &encoder_file("stage1_clip", &[]));
    let config = place.path("config.json");
    for (activation, is_ours) in [("gelu", false), ("quick_gelu", true)] {
        fs::write(&config, json!({ "num_attention_heads": 4, "hidden_act": activation }).to_string())
            .unwrap();
        let found = import(&file, &place.path(activation), Some(&config), &quiet);
        assert_eq!(found.is_ok(), is_ours, "{activation}: {found:?}");
    }
}
