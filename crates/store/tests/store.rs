//! Models are found by name, cache and path, and nothing leads outside or to another model.

use mlxd_store::{NamedFolder, Source, Store, StoreError, StorePaths, weight_summary};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const QWEN: &str = r#"{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}"#;

/// A safetensors file with one tensor of zeros for each name and shape.
fn write_weights(path: &Path, tensors: &[(&str, Dtype, &[usize])]) {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8])
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
        (name.to_string(), TensorView::new(*dtype, shape.to_vec(), data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn write_model(folder: &Path, config: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    write_weights(&folder.join("model.safetensors"), &[("w", Dtype::F32, &[2, 3])]);
}

/// A temporary home with a cache and a folder of models.
struct Place {
    root: TempDir,
    paths: StorePaths,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let paths = StorePaths {
            hf_cache: Some(root.path().join("hub")),
            folders: vec![root.path().join("models")],
            paths_allowed: true,
            home: Some(root.path().to_owned()),
            named: Vec::new(),
        };
        fs::create_dir_all(root.path().join("hub")).unwrap();
        fs::create_dir_all(root.path().join("models")).unwrap();
        Self { root, paths }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    fn store(&self) -> Store {
        Store::new(self.paths.clone())
    }

    /// A repository as `hf download` leaves it: files are links into `blobs`.
    fn in_hub(&self, repository: &str) -> PathBuf {
        let folder = self.path(&format!("hub/models--{}", repository.replace('/', "--")));
        let snapshot = folder.join("snapshots").join(COMMIT);
        write_model(&folder.join("blobs"), QWEN);
        fs::create_dir_all(&snapshot).unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            symlink(format!("../../blobs/{name}"), snapshot.join(name)).unwrap();
        }
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), COMMIT).unwrap();
        snapshot
    }
}

#[test]
fn a_hugging_face_name_leads_to_its_snapshot() {
    let place = Place::new();
    let snapshot = place.in_hub("mlx-community/Qwen3-0.6B-4bit");
    let found = place.store().resolve("mlx-community/Qwen3-0.6B-4bit").unwrap();
    assert_eq!((found.folder, found.source), (snapshot.clone(), Source::Hub));
    assert_eq!(found.name, "mlx-community/Qwen3-0.6B-4bit");
    let at = place.store().resolve(&format!("mlx-community/Qwen3-0.6B-4bit@{COMMIT}")).unwrap();
    assert_eq!(at.folder, snapshot);
    assert!(matches!(
        place.store().resolve("mlx-community/Qwen3-0.6B-4bit@v9"),
        Err(StoreError::Unknown { .. })
    ));
    // Another case is another name, even where the file system would find it.
    assert!(matches!(
        place.store().resolve("MLX-community/qwen3-0.6b-4bit"),
        Err(StoreError::Unknown { nearest: Some(_), .. })
    ));
}

#[test]
fn a_snapshot_without_reference_is_taken_when_it_is_the_only_one() {
    let place = Place::new();
    let snapshot = place.in_hub("o/n");
    fs::remove_file(place.path("hub/models--o--n/refs/main")).unwrap();
    assert_eq!(place.store().resolve("o/n").unwrap().folder, snapshot);
    fs::create_dir(snapshot.with_file_name("f".repeat(40))).unwrap();
    assert!(matches!(
        place.store().resolve("o/n"),
        Err(StoreError::Incomplete { missing, .. }) if missing == ["refs/main"]
    ));
}

#[test]
fn a_reference_cannot_lead_outside() {
    let place = Place::new();
    place.in_hub("o/n");
    write_model(&place.path("outside"), QWEN);
    fs::write(place.path("hub/models--o--n/refs/main"), "../../../outside").unwrap();
    let found = place.store().resolve("o/n").unwrap();
    assert!(found.folder.starts_with(place.path("hub/models--o--n/snapshots")), "{found:?}");
}

#[test]
fn an_incomplete_download_is_told_with_its_cure() {
    let place = Place::new();
    let snapshot = place.in_hub("o/n");
    fs::write(
        snapshot.join("model.safetensors.index.json"),
        r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#,
    )
    .unwrap();
    write_weights(&snapshot.join("model-00001-of-00002.safetensors"), &[("a", Dtype::F16, &[4])]);
    // As a download in progress leaves it: the link is there, the blob is not.
    symlink("../../blobs/gone", snapshot.join("model-00002-of-00002.safetensors")).unwrap();
    let error = place.store().resolve("o/n").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the model \"o/n\" is incomplete: model-00002-of-00002.safetensors missing from {}; \
             finish its download with `mlxctl pull o/n`",
            snapshot.display()
        )
    );
    assert_eq!(place.store().list(), [], "it is not offered");
    let [half] = &place.store().incomplete()[..] else { panic!("one incomplete model") };
    assert_eq!((half.name.as_str(), half.architecture.as_deref()), ("o/n", Some("qwen3")));
    assert_eq!(half.missing, ["model-00002-of-00002.safetensors"]);
    assert_eq!(half.cure, "finish its download with `mlxctl pull o/n`");
    let here = |name: &str| fs::metadata(snapshot.join(name)).unwrap().len();
    assert_eq!(half.bytes, here("model-00001-of-00002.safetensors") + here("model.safetensors"));
}

#[test]
fn what_lacks_files_is_known_from_what_is_no_model() {
    let mut place = Place::new();
    let lacks = |below: &str, config: &str, gone: &str| {
        let folder = place.path(below);
        write_model(&folder, config);
        fs::remove_file(folder.join(gone)).unwrap();
        folder
    };
    lacks("models/own", QWEN, "tokenizer.json");
    lacks(
        "models/bert",
        r#"{"model_type": "b", "architectures": ["BertModel"]}"#,
        "tokenizer.json",
    );
    lacks("models/broken", "{", "tokenizer.json");
    let pickled = lacks("models/pickled", QWEN, "model.safetensors");
    fs::write(pickled.join("pytorch_model.bin"), "").unwrap();
    write_model(&place.path("models/whole"), QWEN);
    // Called off before its first file was whole, and before its first byte.
    fs::create_dir_all(place.path("hub/models--o--begun/blobs")).unwrap();
    fs::write(place.path("hub/models--o--begun/blobs/abc.incomplete"), "12345").unwrap();
    fs::create_dir_all(place.path("hub/models--o--nothing/blobs")).unwrap();
    place.paths.named =
        vec![NamedFolder { name: "gone".to_owned(), folder: place.path("nowhere") }];

    let all = ["config.json", "tokenizer.json", "model.safetensors"];
    let found = place.store().incomplete();
    let told: Vec<(&str, &[String], u64, &str)> =
        found.iter().map(|m| (&*m.name, &*m.missing, m.bytes, &*m.cure)).collect();
    let own_bytes = fs::metadata(place.path("models/own/model.safetensors")).unwrap().len();
    assert_eq!(
        told,
        [
            ("gone", &all.map(str::to_owned)[..], 0, "put them there"),
            (
                "o/begun",
                &all.map(str::to_owned),
                5,
                "finish its download with `mlxctl pull o/begun`"
            ),
            ("own", &["tokenizer.json".to_owned()], own_bytes, "put them there"),
        ]
    );
    let names: Vec<String> = place.store().list().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["whole"]);
}

#[test]
fn an_index_that_names_files_elsewhere_is_damaged() {
    let place = Place::new();
    for odd in ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", ".safetensors"]
    {
        let folder = place.path("models/m");
        write_model(&folder, QWEN);
        let index = format!(r#"{{"weight_map": {{"a": {odd:?}}}}}"#);
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        assert!(matches!(place.store().resolve("m"), Err(StoreError::Corrupt { .. })), "{odd}");
    }
    fs::write(place.path("models/m/model.safetensors.index.json"), "[]").unwrap();
    assert!(matches!(place.store().resolve("m"), Err(StoreError::Corrupt { .. })));
}

#[test]
fn every_missing_file_is_named() {
    let place = Place::new();
    let folder = place.path("bare");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), QWEN).unwrap();
    let error = place.store().resolve(folder.to_str().unwrap()).unwrap_err();
    assert!(matches!(
        error,
        StoreError::Incomplete { missing, .. } if missing == ["tokenizer.json", "model.safetensors"]
    ));
}

#[test]
fn a_path_is_one_model_however_it_is_written() {
    let place = Place::new();
    write_model(&place.path("mine/größe"), QWEN);
    let plain = place.path("mine/größe").to_str().unwrap().to_owned();
    for written in [
        plain.clone(),
        format!("{plain}/"),
        plain.replace("/mine/", "//mine/./"),
        "~/mine/größe".to_owned(),
    ] {
        let found = place.store().resolve(&written).unwrap();
        assert_eq!(
            (found.name.as_str(), found.source),
            (plain.as_str(), Source::Path),
            "{written}"
        );
    }
    assert!(matches!(place.store().resolve("~other/m"), Err(StoreError::BadName { .. })));
    let up = format!("{plain}/../größe");
    assert!(matches!(place.store().resolve(&up), Err(StoreError::BadName { .. })));
    let missing = place.store().resolve("/no/such/folder").unwrap_err();
    assert!(matches!(missing, StoreError::Unknown { .. }), "{missing}");

    let strict = Store::new(StorePaths { paths_allowed: false, ..place.paths.clone() });
    assert!(matches!(strict.resolve(&plain), Err(StoreError::PathsNotAllowed { .. })));
}

#[test]
fn configured_names_come_first_and_stand_in_for_nothing() {
    let mut place = Place::new();
    write_model(&place.path("demo"), QWEN);
    place.in_hub("o/n");
    place.paths.named = vec![
        NamedFolder { name: "mlxd-demo".to_owned(), folder: place.path("demo") },
        NamedFolder { name: "o/n".to_owned(), folder: place.path("demo") },
        NamedFolder { name: "gone".to_owned(), folder: place.path("gone") },
    ];
    let store = place.store();
    assert_eq!(store.resolve("mlxd-demo").unwrap().source, Source::Named);
    assert_eq!(store.resolve("o/n").unwrap().folder, place.path("demo"));
    assert!(matches!(store.resolve("gone"), Err(StoreError::Incomplete { .. })));
    let names: Vec<String> = store.list().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["mlxd-demo", "o/n"]);
    assert_eq!(
        store.resolve("mlxd-dmeo").unwrap_err().to_string(),
        "there is no model \"mlxd-dmeo\"; did you mean \"mlxd-demo\"? Models here: mlxd-demo, o/n"
    );
    assert_eq!(
        store.resolve("gpt-4o").unwrap_err().to_string(),
        "there is no model \"gpt-4o\". Models here: mlxd-demo, o/n"
    );
}

#[test]
fn the_list_shows_what_can_be_loaded() {
    let place = Place::new();
    place.in_hub("o/qwen");
    write_model(&place.path("models/local"), r#"{"model_type": "llama"}"#);
    write_model(&place.path("models/org/inner"), QWEN);
    write_model(
        &place.path("models/bert"),
        r#"{"model_type": "bert", "architectures": ["BertModel"]}"#,
    );
    write_model(
        &place.path("models/whisper"),
        r#"{"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": true}"#,
    );
    write_model(&place.path("models/broken"), "{");
    write_model(&place.path("models/.hidden"), QWEN);
    fs::create_dir_all(place.path("hub/models--o--half/blobs")).unwrap();
    fs::create_dir_all(place.path("hub/datasets--o--d/snapshots/x")).unwrap();
    fs::write(place.path("hub/version.txt"), "1").unwrap();

    let list = place.store().list();
    let names: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["local", "o/qwen", "org/inner"]);
    assert_eq!((list[0].architecture.as_str(), list[0].source), ("llama", Source::Folder));
    let file = fs::metadata(place.path("models/local/model.safetensors")).unwrap();
    assert_eq!(list[0].size_bytes, file.len());
    assert!(list.iter().all(|entry| entry.created_unix_s > 1_600_000_000));
    for entry in &list {
        assert_eq!(place.store().resolve(&entry.name).unwrap().folder, entry.folder);
    }
}

#[test]
fn nothing_anywhere_is_no_error() {
    let store = Store::new(StorePaths::default());
    assert_eq!(store.list(), []);
    assert_eq!(
        store.resolve("o/n").unwrap_err().to_string(),
        "there is no model \"o/n\"; there are no models here yet"
    );
    let place = Place::new();
    fs::remove_dir(place.path("hub")).unwrap();
    assert!(matches!(place.store().resolve("o/n"), Err(StoreError::Unknown { .. })));
}

#[test]
fn headers_tell_parameters_and_bytes() {
    let place = Place::new();
    let folder = place.path("models/q");
    write_model(
        &folder,
        r#"{"model_type": "qwen3", "quantization": {"group_size": 64, "bits": 4, "b": {"group_size": 32, "bits": 8}}}"#,
    );
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    // 8 × 128 parameters at 4 bits are 8 × 16 words with 8 × 2 scales and biases.
    write_weights(
        &folder.join("model-1.safetensors"),
        &[
            ("a.weight", Dtype::U32, &[8, 16]),
            ("a.scales", Dtype::BF16, &[8, 2]),
            ("norm.weight", Dtype::BF16, &[10]),
        ],
    );
    // 4 × 64 at 8 bits in groups of 32; `a`'s biases are in another file.
    write_weights(
        &folder.join("model-2.safetensors"),
        &[
            ("a.biases", Dtype::BF16, &[8, 2]),
            ("b.weight", Dtype::U32, &[4, 16]),
            ("b.scales", Dtype::BF16, &[4, 2]),
            ("b.biases", Dtype::BF16, &[4, 2]),
        ],
    );
    let summary = weight_summary(&folder).unwrap();
    assert_eq!(summary.tensors, 7);
    assert_eq!(summary.parameters, 8 * 128 + 10 + 4 * 64);
    assert_eq!(summary.bytes_by_type["U32"], 4 * (8 * 16 + 4 * 16));
    assert_eq!(summary.bytes, summary.bytes_by_type.values().sum::<u64>());
}

#[test]
fn a_header_that_lies_is_damaged() {
    let place = Place::new();
    let folder = place.path("models/m");
    write_model(&folder, QWEN);
    let file = folder.join("model.safetensors");
    let good = fs::read(&file).unwrap();
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    for bad in [
        Vec::new(),
        good[..5].to_vec(),
        good[..good.len() - 1].to_vec(),
        [&good[..], b"x"].concat(),
        u64::MAX.to_le_bytes().to_vec(),
        [&50u64.to_le_bytes()[..], b"{"].concat(),
        header("{}}"),
        header(r#"{"w":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#),
        header(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#),
        header(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#),
    ] {
        fs::write(&file, &bad).unwrap();
        let result = weight_summary(&folder);
        assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{bad:?}: {result:?}");
    }
}

/// Whatever is asked for, what is found lies in one of the folders or was named by its path.
#[test]
fn no_name_leaves_the_folders() {
    let place = Place::new();
    place.in_hub("o/n");
    write_model(&place.path("secret"), QWEN);
    let store = place.store();
    let roots = [place.path("hub"), place.path("models")];
    proptest!(|(name in "(\\.\\.|/|~|\\.|a|models|hub|--|@|\\\\|\0|é|main|o/n|secret){0,8}")| {
        if let Ok(found) = store.resolve(&name) {
            let inside = roots.iter().any(|root| found.folder.starts_with(root));
            let is_path = name.starts_with(['/', '~']) || name.starts_with("./");
            prop_assert!(inside || is_path, "{:?}", found);
            prop_assert!(!name.contains(".."));
        }
    });
}
