//! A BERT, from which a Q-Former starts.

use super::*;

/// A BERT of one layer as TensorFlow's names have it: norms by gamma and beta, heads beside `bert.`.
fn published() -> TensorMap {
    let mut bert = TensorMap::new();
    let mut put = |name: &str, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|at| (at + bert.len()) as f32 / 64.0).collect();
        bert.insert(name.to_owned(), HostTensor::from_f32(shape, &values).unwrap());
    };
    put("bert.embeddings.word_embeddings.weight", &[11, 4]);
    put("bert.embeddings.position_embeddings.weight", &[6, 4]);
    put("bert.embeddings.token_type_embeddings.weight", &[2, 4]);
    put("bert.pooler.dense.weight", &[4, 4]);
    for part in
        ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    {
        put(&format!("bert.encoder.layer.0.{part}.weight"), &[4, 4]);
        put(&format!("bert.encoder.layer.0.{part}.bias"), &[4]);
    }
    for norm in [
        "bert.embeddings.LayerNorm",
        "bert.encoder.layer.0.attention.output.LayerNorm",
        "bert.encoder.layer.0.output.LayerNorm",
        "cls.predictions.transform.LayerNorm",
    ] {
        put(&format!("{norm}.gamma"), &[4]);
        put(&format!("{norm}.beta"), &[4]);
    }
    put("bert.encoder.layer.0.intermediate.dense.weight", &[8, 4]);
    put("bert.encoder.layer.0.intermediate.dense.bias", &[8]);
    put("bert.encoder.layer.0.output.dense.weight", &[4, 8]);
    put("bert.encoder.layer.0.output.dense.bias", &[4]);
    put("cls.predictions.transform.dense.weight", &[4, 4]);
    put("cls.predictions.transform.dense.bias", &[4]);
    put("cls.predictions.bias", &[11]);
    put("cls.seq_relationship.weight", &[2, 4]);
    let decoder = bert["bert.embeddings.word_embeddings.weight"].clone();
    bert.insert("cls.predictions.decoder.weight".to_owned(), decoder);
    bert
}

fn folder(place: &Place, name: &str, bert: &TensorMap) -> PathBuf {
    let folder = place.path(name);
    fs::create_dir(&folder).unwrap();
    write_safetensors(&folder.join("model.safetensors"), bert, &Default::default()).unwrap();
    fs::write(folder.join("vocab.txt"), "[PAD]\n").unwrap();
    folder
}

#[test]
fn a_bert_gets_its_new_names_keeps_its_lm_head_and_loses_what_nobody_needs() {
    let place = Place::new();
    let bert = published();
    import(&folder(&place, "bert", &bert), &place.path("ours"), None, &quiet).unwrap();
    let ours = all_of(&place.path("ours"));
    assert!(ours.contains_key("encoder.layer.0.output.LayerNorm.weight"), "{:?}", ours.keys());
    assert!(ours.contains_key("embeddings.LayerNorm.bias"));
    for (name, old) in [
        ("cls.predictions.bias", "cls.predictions.bias"),
        ("cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.weight"),
        ("cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.gamma"),
    ] {
        assert_eq!(ours[name], bert[old], "{name}");
    }
    // pooler, sentence head, and the decoder, which is a copy of the word embeddings
    assert_eq!(ours.len(), bert.len() - 3, "{:?}", ours.keys());
    assert!(place.path("ours/vocab.txt").is_file());
}

#[test]
fn a_decoder_of_its_own_is_another_model() {
    let place = Place::new();
    let mut bert = published();
    let other = HostTensor::from_f32(&[11, 4], &[9.0; 44]).unwrap();
    bert.insert("cls.predictions.decoder.weight".to_owned(), other);
    let error = import(&folder(&place, "bert", &bert), &place.path("ours"), None, &quiet).unwrap_err();
    assert!(
        error.to_string().contains("must be a copy of bert.embeddings.word_embeddings.weight"),
        "{error}"
    );
}

#[test]
fn a_qformer_starts_from_published_names_as_from_our_own() {
    let place = Place::new();
    let bert = published();
    import(&folder(&place, "bert", &bert), &place.path("ours"), None, &quiet).unwrap();
    let start = |tensors: &TensorMap| {
        tch::manual_seed(3);
        let store = tch::nn::VarStore::new(Device::Cpu);
        let text =
            model::TextBranchConfig { vocab_size: 12, max_position_embeddings: 6, decoder_start_id: 11 };
        let config = model::QformerConfig {
            hidden_size: 4,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            intermediate_size: 8,
            cross_attention_freq: 2,
            num_query_tokens: 2,
            encoder_hidden_size: 4,
            layer_norm_eps: 1e-12,
            dropout: 0.0,
            text: Some(text),
            gradient_checkpointing: false,
        };
        let _qformer = model::Qformer::new(&store.root(), &config);
        let filled = model::init_from_bert(&store, &torch(tensors)).unwrap();
        let values: BTreeMap<String, Tensor> = store.variables().into_iter().collect();
        (filled, values)
    };
    let (filled, theirs) = start(&bert);
    let (filled_again, ours) = start(&all_of(&place.path("ours")));
    assert_eq!(filled, filled_again);
    assert!(filled.iter().any(|name| name.ends_with("LayerNorm.bias")), "{filled:?}");
    for (name, value) in theirs {
        assert!(value.equal(&ours[&name]), "{name}");
    }
}
