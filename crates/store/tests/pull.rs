//! Pulling from a hub that stalls, breaks off, redirects, refuses and changes its mind.

use mlxd_store::{
    HubAccess, Pull, PullCancel, PullError, PullLimits, PullProgress, PullRetry, Pulled, Store,
    StorePaths,
};
use mlxd_testkit::{FakeHub, HubCall, HubFault, until};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const NAME: &str = "org/name";
const COMMIT: &str = "0123456789012345678901234567890123456789";
const WEIGHTS: &str = "model.safetensors";

/// A hub with one small model, and an empty cache.
struct Scene {
    hub: FakeHub,
    cache: TempDir,
    weights: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            hub: FakeHub::start(),
            cache: tempfile::tempdir().unwrap(),
            weights: (0..200_000_u32).map(|n| (n * 7 % 251) as u8).collect(),
        };
        scene.publish(COMMIT, &scene.weights);
        scene
    }

    fn publish(&self, commit: &str, weights: &[u8]) {
        self.hub.publish(
            NAME,
            commit,
            &[
                ("config.json", br#"{"model_type": "llama"}"#),
                ("tokenizer.json", b"{}"),
                ("1_Pooling/config.json", b"{}"),
                ("model.py", b"import os"),
                ("pytorch_model.bin", b"pickle"),
                (WEIGHTS, weights),
            ],
        );
    }

    fn pull(&self) -> Pull {
        Pull {
            name: NAME.into(),
            cache: self.cache.path().to_owned(),
            access: HubAccess {
                endpoint: self.hub.endpoint(),
                proxies: false,
                ..HubAccess::default()
            },
            limits: PullLimits {
                stall_timeout: Duration::from_secs(5),
                attempts_max: 3,
                backoff_initial: Duration::from_millis(1),
                backoff_max: Duration::from_millis(2),
                reserve_bytes: 0,
                ..PullLimits::default()
            },
            progress: PullProgress::default(),
            cancel: PullCancel::default(),
        }
    }

    fn fails_with(&self, call: HubCall, fault: HubFault) {
        self.hub.fail(call, fault);
    }

    fn spoil(&self, fault: HubFault) {
        self.fails_with(HubCall::Get(WEIGHTS.into()), fault);
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("models--org--name")
    }

    fn blobs(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.repository().join("blobs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The weights as a reader of the cache finds them.
    fn weights_here(&self) -> Vec<u8> {
        let store = Store::new(StorePaths {
            hf_cache: Some(self.cache.path().to_owned()),
            ..StorePaths::default()
        });
        let found = store.resolve(NAME).unwrap();
        std::fs::read(found.folder.join(WEIGHTS)).unwrap()
    }

    fn ranges(&self) -> Vec<Option<String>> {
        let requests = self.hub.requests();
        let of_weights = requests.into_iter().filter(|r| r.at_storage && r.method == "GET");
        of_weights.map(|request| request.range).collect()
    }
}

fn whole(scene: &Scene, outcome: Result<Pulled, PullError>) -> Pulled {
    let pulled = outcome.unwrap();
    assert_eq!(scene.weights_here(), scene.weights);
    assert!(scene.blobs().iter().all(|name| !name.ends_with(".incomplete")));
    pulled
}

#[test]
fn a_pull_gives_the_layout_that_other_tools_share() {
    let scene = Scene::new();
    let pulled = whole(&scene, scene.pull().run());
    assert_eq!((pulled.files, pulled.commit.as_str()), (4, COMMIT));
    // Two of the files are the same two bytes.
    assert_eq!(pulled.bytes_total, pulled.bytes_fetched + 2);
    let repository = scene.repository();
    assert_eq!(std::fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    let snapshot = repository.join("snapshots").join(COMMIT);
    let target = |file: &str| std::fs::read_link(snapshot.join(file)).unwrap();
    // `sha256sum` and `git hash-object` of what was published.
    assert!(target(WEIGHTS).starts_with("../../blobs"));
    assert_eq!(target(WEIGHTS).file_name().unwrap().len(), 64);
    let empty_object = "9e26dfeeb6e641a33dae4961196235bdb965b21b";
    assert_eq!(target("tokenizer.json"), Path::new("../../blobs").join(empty_object));
    assert_eq!(
        target("1_Pooling/config.json"),
        Path::new("../../../blobs").join(empty_object),
        "from a folder further down"
    );
    assert!(!snapshot.join("pytorch_model.bin").exists() && !snapshot.join("model.py").exists());
    assert!(scene.cache.path().join(".locks/models--org--name").is_dir());

    let again = scene.pull().run().unwrap();
    assert_eq!(again.bytes_fetched, 0);
    assert_eq!(scene.hub.gets(WEIGHTS), 1, "nothing is fetched twice");
}

#[test]
fn a_file_goes_on_where_it_broke_off() {
    let scene = Scene::new();
    scene.spoil(HubFault::BreakAfter(70_000));
    scene.spoil(HubFault::BreakAfter(10_000));
    whole(&scene, scene.pull().run());
    let from = |start: &str| Some(format!("bytes={start}-"));
    assert_eq!(scene.ranges(), [None, from("70000"), from("80000")]);
}

#[test]
fn the_next_pull_goes_on_with_what_the_last_one_left() {
    let scene = Scene::new();
    // Three attempts without a byte end it.
    scene.spoil(HubFault::BreakAfter(50_000));
    for _ in 0..3 {
        scene.spoil(HubFault::BreakAfter(0));
    }
    let error = scene.pull().run().unwrap_err();
    assert!(matches!(error, PullError::Unreachable { attempts: 3, .. }), "{error}");
    assert!(error.to_string().contains("the next pull goes on from there"), "{error}");
    assert!(scene.blobs().iter().any(|name| name.ends_with(".incomplete")));
    assert!(!scene.repository().join("refs/main").exists(), "half a model has no reference");

    let pull = scene.pull();
    let pulled = whole(&scene, pull.run());
    assert_eq!(scene.ranges().last().unwrap().as_deref(), Some("bytes=50000-"));
    assert!(pulled.bytes_fetched < pulled.bytes_total - 49_000);
}

#[test]
fn silence_is_given_up_and_tried_again() {
    let scene = Scene::new();
    scene.spoil(HubFault::StallAfter(30_000));
    let mut pull = scene.pull();
    pull.limits.stall_timeout = Duration::from_millis(300);
    whole(&scene, pull.run());
    assert_eq!(scene.ranges().last().unwrap().as_deref(), Some("bytes=30000-"));

    let scene = Scene::new();
    for _ in 0..3 {
        scene.spoil(HubFault::StallAfter(0));
    }
    let mut pull = scene.pull();
    pull.limits.stall_timeout = Duration::from_millis(100);
    let error = pull.run().unwrap_err().to_string();
    assert!(error.contains("nothing came for 0.1 s, 3 times in a row"), "{error}");
}

#[test]
fn content_that_changes_between_ranges_is_found_out_and_fetched_anew() {
    let scene = Scene::new();
    scene.spoil(HubFault::BreakAfter(90_000));
    scene.spoil(HubFault::OtherContent);
    whole(&scene, scene.pull().run());
    assert_eq!(scene.ranges(), [None, Some("bytes=90000-".into()), None]);

    let scene = Scene::new();
    scene.spoil(HubFault::OtherContent);
    scene.spoil(HubFault::OtherContent);
    let error = scene.pull().run().unwrap_err();
    assert!(matches!(&error, PullError::Damaged { file, .. } if file == WEIGHTS), "{error}");
    assert!(error.to_string().contains("SHA-256"), "{error}");
    let sha = |name: &String| name.split('.').next().is_some_and(|etag| etag.len() == 64);
    assert!(!scene.blobs().iter().any(sha), "nothing damaged is kept: {:?}", scene.blobs());
}

#[test]
fn a_small_file_is_checked_too() {
    let scene = Scene::new();
    let config = || HubCall::Get("config.json".into());
    scene.fails_with(config(), HubFault::OtherContent);
    whole(&scene, scene.pull().run());

    let scene = Scene::new();
    scene.fails_with(config(), HubFault::OtherContent);
    scene.fails_with(config(), HubFault::OtherContent);
    let error = scene.pull().run().unwrap_err().to_string();
    assert!(
        error.contains("config.json came damaged twice") && error.contains("git blob"),
        "{error}"
    );
}

#[test]
fn a_hub_without_ranges_sends_the_whole_again() {
    let scene = Scene::new();
    scene.spoil(HubFault::BreakAfter(60_000));
    scene.spoil(HubFault::IgnoreRange);
    whole(&scene, scene.pull().run());
    assert_eq!(scene.ranges().len(), 2);

    let scene = Scene::new();
    scene.spoil(HubFault::BreakAfter(60_000));
    scene.spoil(HubFault::WrongRange);
    whole(&scene, scene.pull().run());
    assert_eq!(scene.ranges().len(), 3, "a part that was not asked for is not taken");
}

#[test]
fn what_another_tool_left_is_gone_on_with_unless_it_is_wrong() {
    let scene = Scene::new();
    whole(&scene, scene.pull().run());
    let blob =
        std::fs::canonicalize(scene.repository().join("snapshots").join(COMMIT).join(WEIGHTS))
            .unwrap();
    let partial =
        blob.with_file_name(format!("{}.incomplete", blob.file_name().unwrap().display()));
    for (left, gets) in [
        (scene.weights[..120_000].to_vec(), 1),
        (vec![7; 120_000], 2),
        (vec![7; 900_000], 1),
        (scene.weights.clone(), 0),
    ] {
        std::fs::remove_file(&blob).unwrap();
        std::fs::write(&partial, &left).unwrap();
        let before = scene.ranges().len();
        whole(&scene, scene.pull().run());
        assert_eq!(scene.ranges().len() - before, gets);
    }
}

#[test]
fn the_token_stays_with_the_hub() {
    let scene = Scene::new();
    scene.hub.require_token("hf_secret");
    let error = scene.pull().run().unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { had_token: false, .. }), "{error}");
    assert!(error.to_string().contains("set HF_TOKEN"), "{error}");

    let mut pull = scene.pull();
    pull.access.token = Some("hf_secret".into());
    assert!(!format!("{pull:?}").contains("hf_secret"));
    whole(&scene, pull.run());
    let requests = scene.hub.requests();
    let (at_storage, at_hub): (Vec<_>, Vec<_>) = requests.iter().partition(|r| r.at_storage);
    assert!(!at_storage.is_empty() && at_storage.iter().all(|r| r.authorization.is_none()));
    assert!(at_storage.iter().all(|request| request.host.starts_with("localhost:")));
    assert!(at_hub.iter().any(|r| r.authorization.as_deref() == Some("Bearer hf_secret")));
}

#[test]
fn redirects_are_followed_but_not_for_ever_and_not_to_nowhere() {
    let scene = Scene::new();
    // A renamed repository: the hub leads on within itself.
    let there = format!("/api/models/{NAME}/revision/main?renamed");
    scene.fails_with(HubCall::List, HubFault::Redirect(there.clone()));
    whole(&scene, scene.pull().run());

    let scene = Scene::new();
    for _ in 0..30 {
        scene.fails_with(HubCall::List, HubFault::Redirect(there.clone()));
    }
    let error = scene.pull().run().unwrap_err().to_string();
    assert!(error.contains("redirects"), "{error}");

    let scene = Scene::new();
    scene.fails_with(HubCall::List, HubFault::Redirect("gopher://x/".into()));
    let error = scene.pull().run().unwrap_err();
    assert!(matches!(error, PullError::BadAnswer { .. }), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let refused = |call: HubCall, status: u16, headers: &[(&'static str, &str)]| {
        let scene = Scene::new();
        let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
        for _ in 0..3 {
            scene.fails_with(call.clone(), HubFault::Status(status, headers.clone()));
        }
        let error = scene.pull().run().unwrap_err();
        (error.to_string(), error)
    };
    let weights = || HubCall::Head(WEIGHTS.into());
    let (text, error) = refused(weights(), 403, &[("X-Error-Code", "GatedRepo")]);
    assert!(matches!(error, PullError::Gated { .. }) && text.contains("ask for access"), "{text}");
    let (text, error) = refused(HubCall::List, 403, &[]);
    assert!(matches!(error, PullError::Unauthorized { .. }), "{text}");
    let (text, error) = refused(HubCall::List, 401, &[]);
    assert!(matches!(error, PullError::Unauthorized { .. }), "{text}");
    let (text, error) = refused(HubCall::List, 404, &[]);
    assert!(
        matches!(error, PullError::NotFound { .. }) && text.contains("org/name at main"),
        "{text}"
    );
    let (text, error) = refused(HubCall::List, 503, &[]);
    assert!(matches!(error, PullError::Refused { status: 503, .. }), "{text}");
    assert!(text.contains("try again later"), "{text}");
    // Longer than one waits for.
    let (text, error) = refused(HubCall::List, 429, &[("Retry-After", "86400")]);
    assert!(matches!(error, PullError::Refused { status: 429, .. }), "{text}");
    assert!(text.contains("too many requests"), "{text}");
    let (text, error) = refused(HubCall::List, 418, &[("X-Error-Message", "a teapot")]);
    assert!(matches!(error, PullError::Refused { status: 418, .. }), "{text}");
    assert!(text.contains("a teapot"), "{text}");
}

#[test]
fn passing_refusals_are_waited_out() {
    let scene = Scene::new();
    let now = || vec![("Retry-After", "0".to_owned())];
    scene.fails_with(HubCall::List, HubFault::Status(429, now()));
    scene.fails_with(HubCall::List, HubFault::Status(502, Vec::new()));
    scene.fails_with(HubCall::Head(WEIGHTS.into()), HubFault::Status(500, Vec::new()));
    scene.spoil(HubFault::Status(503, Vec::new()));
    // A link to the storage that grew old: the hub gives a new one.
    scene.spoil(HubFault::Status(403, Vec::new()));
    whole(&scene, scene.pull().run());
}

#[test]
fn a_revision_is_pinned_by_its_commit() {
    let scene = Scene::new();
    let newer = "abcdefabcdefabcdefabcdefabcdefabcdefabcd";
    let other: Vec<u8> = scene.weights.iter().rev().copied().collect();
    scene.publish(newer, &other);
    let mut pull = scene.pull();
    pull.name = format!("{NAME}@{COMMIT}");
    assert_eq!(pull.run().unwrap().commit, COMMIT);
    assert!(!scene.repository().join("refs").exists(), "a commit is its own reference");
    assert_eq!(scene.weights_here(), scene.weights, "the only one there");

    assert_eq!(scene.pull().run().unwrap().commit, newer);
    assert_eq!(scene.weights_here(), other);
    let both = std::fs::read_dir(scene.repository().join("snapshots")).unwrap().count();
    assert_eq!(both, 2);

    let mut pull = scene.pull();
    pull.name = format!("{NAME}@nowhere");
    let error = pull.run().unwrap_err().to_string();
    assert!(error.contains("org/name at nowhere"), "{error}");
}

#[test]
fn a_new_revision_that_breaks_off_leaves_the_old_one_usable() {
    let scene = Scene::new();
    scene.pull().run().unwrap();
    let other: Vec<u8> = scene.weights.iter().rev().copied().collect();
    scene.publish("abcdefabcdefabcdefabcdefabcdefabcdefabcd", &other);
    for _ in 0..3 {
        scene.spoil(HubFault::BreakAfter(0));
    }
    scene.pull().run().unwrap_err();
    assert_eq!(scene.weights_here(), scene.weights);
}

#[test]
fn it_can_be_called_off_and_gone_on_with() {
    let scene = Scene::new();
    scene.spoil(HubFault::HoldAfter(40_000));
    let pull = scene.pull();
    let (progress, cancel) = (pull.progress.clone(), pull.cancel.clone());
    let running = std::thread::spawn(move || pull.run());
    until("the first bytes", || {
        let state = progress.state();
        state
            .files
            .iter()
            .any(|file| file.name == WEIGHTS && file.bytes_done == 40_000)
            .then_some(())
    });
    cancel.cancel();
    assert_eq!(running.join().unwrap(), Err(PullError::Cancelled));
    scene.hub.release();
    whole(&scene, scene.pull().run());
    assert_eq!(scene.ranges().last().unwrap().as_deref(), Some("bytes=40000-"));
}

#[test]
fn two_programs_fetch_a_file_once() {
    let scene = Scene::new();
    scene.spoil(HubFault::HoldAfter(40_000));
    let first = scene.pull();
    let progress = first.progress.clone();
    let first = std::thread::spawn(move || first.run());
    until("the first bytes", || (progress.state().bytes_fetched >= 40_000).then_some(()));
    let second = scene.pull();
    let second = std::thread::spawn(move || second.run());
    // The second has asked about the weights, and now waits for the first one's lock.
    until("the second's question", || {
        let asked = scene.hub.requests().into_iter();
        let asked = asked.filter(|r| r.method == "HEAD" && r.path.ends_with(WEIGHTS)).count();
        (asked == 2).then_some(())
    });
    scene.hub.release();
    first.join().unwrap().unwrap();
    whole(&scene, second.join().unwrap());
    assert_eq!(scene.hub.gets(WEIGHTS), 1);
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_comes() {
    let scene = Scene::new();
    let mut pull = scene.pull();
    pull.limits.reserve_bytes = u64::MAX / 2;
    let error = pull.run().unwrap_err();
    assert!(matches!(error, PullError::NoSpace { needed_bytes: 200_025.., .. }), "{error}");
    assert!(error.to_string().contains("; 200 kB are to come"), "{error}");
    assert_eq!(scene.hub.gets(WEIGHTS), 0);
}

#[test]
fn offline_asks_nobody() {
    let scene = Scene::new();
    let mut pull = scene.pull();
    pull.access.offline = true;
    let error = pull.run().unwrap_err();
    assert!(matches!(error, PullError::Offline { .. }), "{error}");
    assert!(scene.hub.requests().is_empty());
    scene.pull().run().unwrap();
    let before = scene.hub.requests().len();
    let pulled = whole(&scene, pull.run());
    assert_eq!((pulled.commit.as_str(), pulled.bytes_fetched), (COMMIT, 0));
    assert_eq!(scene.hub.requests().len(), before);
}

#[test]
fn weights_in_many_files_come_as_their_index_says() {
    let scene = Scene::new();
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    scene.hub.publish(
        "org/sharded",
        COMMIT,
        &[
            ("config.json", b"{}"),
            ("tokenizer.json", b"{}"),
            ("model.safetensors.index.json", index),
            ("m-1.safetensors", b"one"),
            ("m-2.safetensors", b"two"),
            ("consolidated.safetensors", b"both"),
        ],
    );
    let mut pull = scene.pull();
    pull.name = "org/sharded".into();
    let pulled = pull.run().unwrap();
    assert_eq!(pulled.files, 5);
    assert!(!pulled.folder.join("consolidated.safetensors").exists());
}

#[test]
fn a_hub_that_is_none_is_not_believed() {
    let scene = Scene::new();
    let mut names = vec![("config.json", &b"{}"[..])];
    names.push(("../../escape.safetensors", b"x"));
    scene.hub.publish("org/evil", COMMIT, &names);
    let mut pull = scene.pull();
    pull.name = "org/evil".into();
    let error = pull.run().unwrap_err().to_string();
    assert!(error.contains("escape.safetensors"), "{error}");
    scene.hub.publish("org/odd", "not-a-commit", &[("model.safetensors", b"x")]);
    pull.name = "org/odd".into();
    assert!(matches!(pull.run(), Err(PullError::BadAnswer { .. })));
    for (name, endpoint) in [("/a/path", None), ("org/name", Some("ftp://x")), ("a/b/c", None)] {
        let mut pull = scene.pull();
        pull.name = name.into();
        pull.access.endpoint = endpoint.map_or(pull.access.endpoint, str::to_owned);
        let error = pull.run().unwrap_err();
        assert!(matches!(error, PullError::Name(_) | PullError::Endpoint { .. }), "{error}");
    }
}

#[test]
fn nobody_there_is_said() {
    let scene = Scene::new();
    let mut pull = scene.pull();
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    pull.access.endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = pull.run().unwrap_err();
    assert!(matches!(error, PullError::Unreachable { attempts: 3, .. }), "{error}");
}

#[test]
fn who_watches_sees_what_is_tried_again_and_when() {
    let scene = Scene::new();
    let mut pull = scene.pull();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("http://{free}");
    pull.access.endpoint = nobody.clone();
    (pull.limits.backoff_initial, pull.limits.backoff_max) =
        (Duration::from_secs(40), Duration::from_secs(60));
    let (progress, cancel) = (pull.progress.clone(), pull.cancel.clone());
    let running = std::thread::spawn(move || pull.run());
    let retries = until("a retry", || {
        let retries = progress.state().retries;
        (!retries.is_empty()).then_some(retries)
    });
    let [retry] = &retries[..] else { panic!("{retries:?}") };
    assert_eq!((&*retry.what, &retry.endpoint), ("org/name at main", &nobody));
    assert_eq!((retry.attempt, retry.attempts_max, retry.number), (2, 3, 1));
    assert_eq!((&*retry.fault, &retry.file), ("the connection is refused", &None));
    let wait = retry.at.saturating_duration_since(std::time::Instant::now());
    assert!(wait > Duration::ZERO && wait <= Duration::from_secs(40), "{wait:?}");
    cancel.cancel();
    assert_eq!(running.join().unwrap(), Err(PullError::Cancelled));
}

#[test]
fn a_files_retry_is_told_until_its_bytes_come() {
    let scene = Scene::new();
    scene.fails_with(HubCall::List, HubFault::Status(503, Vec::new()));
    scene.spoil(HubFault::BreakAfter(1000));
    scene.spoil(HubFault::HoldAfter(1000));
    let mut pull = scene.pull();
    let wait = Duration::from_millis(300);
    (pull.limits.backoff_initial, pull.limits.backoff_max) = (wait, wait);
    let progress = pull.progress.clone();
    let running = std::thread::spawn(move || pull.run());
    let retry = until("the file's retry", || {
        let of_file = |retry: &PullRetry| retry.file.as_deref() == Some(WEIGHTS);
        let state = progress.state();
        let retry = state.retries.iter().find(|retry| of_file(retry))?;
        let weights = state.files.iter().find(|file| file.name == WEIGHTS)?;
        assert_eq!(weights.trouble.as_ref(), Some(&retry.fault));
        Some((retry.attempt, retry.number))
    });
    assert_eq!(retry, (2, 2));
    until("the rest to begin to come", || {
        let state = progress.state();
        let weights = state.files.iter().find(|file| file.name == WEIGHTS)?;
        (weights.bytes_done == 2000).then_some(())
    });
    let state = progress.state();
    assert_eq!((state.retries_total, state.retries.len()), (2, 0), "{:?}", state.retries);
    scene.hub.release();
    whole(&scene, running.join().unwrap());
}
