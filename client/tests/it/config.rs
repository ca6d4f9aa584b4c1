//! Settings that follow a real cluster.

use std::{sync::Arc, time::Duration};

use conclave_client::{
    Client,
    config::{Basis, Boot, Codec, Config, Error, Layer, Release, RolledBack, Secret, Source},
    kv::put,
    mvccpb::{Event, event::EventType},
};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    SOON, eventually, program,
    server::{Server, free_port},
    start,
};

#[derive(Debug, PartialEq, Deserialize)]
struct App {
    port: u16,
    #[serde(default)]
    name: String,
    #[serde(default)]
    workers: Option<u8>,
    #[serde(default)]
    password: Secret<String>,
}

async fn until<T>(config: &Config<T>, what: &str, mut check: impl FnMut(&T) -> bool) -> Arc<T> {
    let mut values = config.subscribe();
    let value = timeout(SOON, values.wait_for(|value| check(value))).await;
    Arc::clone(
        &value.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}")).expect("it follows"),
    )
}

#[tokio::test]
async fn each_layer_wins_over_those_before_it() {
    let Some((_server, client)) = start("each_layer_wins_over_those_before_it").await else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("app.toml");
    std::fs::write(&file, "f = 1\ns = 1\na = 1\ne = 1\no = 1\n").unwrap();
    for path in ["s", "a", "e", "o"] {
        client.put(format!("shared/{path}"), "2").await.unwrap();
    }
    client.put("app.yaml", "a: 3\ne: 3\no: 3\n").await.unwrap();
    let variables = ["X_E", "X_O"].map(|name| (name.to_owned(), "4".to_owned()));
    let config = client
        .config::<std::collections::BTreeMap<String, u8>>()
        // The order of the calls does not matter.
        .set("o", 5)
        .variables("X_", variables)
        .app(Source::document("app.yaml"))
        .shared(Source::prefix("shared/"))
        .file(&file)
        .defaults(json!({"d": 0, "f": 0, "s": 0, "a": 0, "e": 0, "o": 0}))
        .start()
        .await
        .unwrap();
    let values: String =
        config.current().iter().map(|(path, value)| format!("{path}{value} ")).collect();
    assert_eq!(values, "a3 d0 e4 f1 o5 s2 ");
    let winner = |path: &str| config.explain(path).origin().unwrap().layer;
    assert_eq!(["d", "f", "s", "a", "e", "o"].map(winner), Layer::ORDER);
    let layers: Vec<Layer> =
        config.explain("o").sources.iter().map(|(origin, _)| origin.layer).collect();
    assert_eq!(layers, Layer::ORDER);
    assert!(config.explain("a").origin().unwrap().revision > 0);
}

#[tokio::test]
async fn settings_follow_the_cluster_and_bad_ones_are_refused() {
    let test = "settings_follow_the_cluster_and_bad_ones_are_refused";
    let Some((_server, client)) = start(test).await else { return };
    client.put("c/port", "80").await.unwrap();
    let config = client
        .config::<App>()
        .app(Source::prefix("c/"))
        .validate(|app: &App| if app.port < 1000 { Ok(()) } else { Err("port too high") })
        .start()
        .await
        .unwrap();
    let mut rejections = config.rejections();
    let mut ports = config.on_change("port");
    let mut all = config.on_change("");
    client.put("c/name", "x").await.unwrap();
    until(&config, "a name", |app| app.name == "x").await;
    assert_eq!(all.next().await.unwrap().new, Some(json!({"name": "x", "port": "80"})));

    let put = client.put("c/port", "many").await.unwrap();
    let rejection = timeout(SOON, rejections.recv()).await.unwrap().unwrap();
    assert_eq!(rejection.path, "port");
    assert_eq!(rejection.origin.as_ref().unwrap().revision, put.revision());
    let put = client.put("c/port", "1234").await.unwrap();
    let rejection = timeout(SOON, rejections.recv()).await.unwrap().unwrap();
    assert_eq!(rejection.reason, "port too high");
    assert_eq!(rejection.revision, put.revision());
    assert_eq!(config.status().borrow().rejection, Some(rejection));
    assert_eq!(config.current().port, 80, "the last good value stays");

    let put = client.put("c/port", "90").await.unwrap();
    let change = timeout(SOON, ports.next()).await.unwrap().unwrap();
    assert_eq!((change.old, change.new), (Some(json!("80")), Some(json!("90"))));
    assert_eq!(change.revision, put.revision());
    let status = config.status();
    assert_eq!(status.borrow().rejection, None);
    assert_eq!(config.revision(), put.revision());

    client.put("c/password", "hunter2").await.unwrap();
    let app = until(&config, "a password", |app| app.password.expose() == "hunter2").await;
    let shown = format!("{app:?} {} {}", config.explain("password"), config.tree());
    assert!(!shown.contains("hunter2") && shown.contains("(secret)"), "{shown}");
}

/// Both halves of a pair, which are always written together.
#[derive(Debug, Deserialize)]
struct Pair {
    left: u64,
    right: u64,
}

#[tokio::test]
async fn two_prefixes_are_never_seen_at_two_revisions() {
    let test = "two_prefixes_are_never_seen_at_two_revisions";
    let Some((mut server, client)) = start(test).await else { return };
    let write = async |n: u64| {
        let txn =
            client.txn().then(put("l/left", n.to_string())).then(put("r/right", n.to_string()));
        txn.commit().await
    };
    write(0).await.unwrap();
    let config = client
        .config::<Pair>()
        .shared(Source::prefix("l/"))
        .app(Source::prefix("r/"))
        .validate(|pair: &Pair| if pair.left == pair.right { Ok(()) } else { Err("mixed") })
        .debounce(Duration::from_millis(1), Duration::from_millis(5))
        .start()
        .await
        .unwrap();
    let mut rejections = config.rejections();
    let mut changes = config.on_change("");
    let reader = tokio::spawn(async move {
        let (mut revision, mut seen) = (0, 0);
        while seen < 900 {
            let change = changes.next().await.expect("it follows");
            assert!(change.revision > revision, "{change:?} after {revision}");
            revision = change.revision;
            let new = change.new.expect("settings");
            let number = |side: &str| new[side].as_str().expect("text").parse::<u64>();
            assert_eq!(number("left"), number("right"), "{new}");
            assert!(number("left").unwrap() >= seen);
            seen = number("left").unwrap();
        }
    });
    for n in 1..=900 {
        // An answer may be lost in a restart; the next write makes up for it.
        let written = write(n).await;
        if n % 300 == 0 {
            server.kill();
            server.start();
            client.ready().await.unwrap();
            write(n).await.unwrap();
            let revision = client.get("none").await.unwrap().revision();
            client.compact(revision).await.unwrap();
        } else {
            written.unwrap();
        }
    }
    timeout(SOON, reader).await.expect("in time").expect("never mixed");
    assert!(rejections.try_recv().is_err());
}

#[tokio::test]
async fn settings_compacted_while_disconnected_are_read_again() {
    let test = "settings_compacted_while_disconnected_are_read_again";
    let Some((mut server, client)) = start(test).await else { return };
    client.put("c/port", "1").await.unwrap();
    let config = client.config::<App>().app(Source::prefix("c/")).start().await.unwrap();
    let mut status = config.status();
    for port in 2..5_u16 {
        server.kill();
        let status_now = timeout(SOON, status.wait_for(|status| !status.is_connected))
            .await
            .expect("the outage is reported")
            .unwrap()
            .clone();
        assert!(status_now.trouble.is_some_and(|why| why.contains("127.0.0.1")), "it says why");
        assert_eq!(config.current().port, port - 1, "the last good settings stay in use");
        server.start();
        client.ready().await.unwrap();
        client.put("c/port", port.to_string()).await.unwrap();
        let last = client.put("c/name", "x").await.unwrap();
        client.compact(last.revision()).await.unwrap();
        until(&config, "the new port", |app| app.port == port).await;
        timeout(SOON, status.wait_for(|status| status.is_connected))
            .await
            .expect("the recovery is reported")
            .unwrap();
        assert_eq!(config.status().borrow().trouble, None);
    }
}

#[tokio::test]
async fn a_burst_of_changes_becomes_few() {
    let Some((_server, client)) = start("a_burst_of_changes_becomes_few").await else { return };
    client.put("c/port", "0").await.unwrap();
    let config = client
        .config::<App>()
        .app(Source::prefix("c/"))
        // A slow disk may pause between the changes.
        .debounce(Duration::from_secs(2), SOON)
        .start()
        .await
        .unwrap();
    let mut changes = config.on_change("port");
    let mut writers = JoinSet::new();
    for port in 1..=50_u16 {
        let client = client.clone();
        writers.spawn(async move { client.put("c/port", port.to_string()).await.map(drop) });
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap().unwrap();
    }
    let last = client.put("c/port", "99").await.unwrap();
    let mut count = 0;
    loop {
        let change = timeout(SOON, changes.next()).await.unwrap().unwrap();
        count += 1;
        if change.revision == last.revision() {
            break;
        }
    }
    assert!(count <= 5, "{count} changes for one burst");
    assert_eq!(config.current().port, 99);
}

#[tokio::test]
async fn only_an_optional_file_may_be_missing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("app.toml");
    let client = nobody();
    let build = || {
        let builder = client.config::<App>().defaults(json!({"port": 1}));
        builder.app(Source::document("c")).boot(Boot::UseDefaults)
    };
    let error = build().file(&path).start().await.unwrap_err();
    assert!(matches!(&error, Error::Setup(reason) if reason.contains("app.toml")), "{error:?}");
    assert_eq!(build().optional_file(&path).start().await.unwrap().current().port, 1);
    std::fs::write(&path, "port = 2\n").unwrap();
    assert_eq!(build().optional_file(&path).start().await.unwrap().current().port, 2);
    // A file that exists must be valid.
    std::fs::write(&path, "port = \n").unwrap();
    let error = build().optional_file(&path).start().await.unwrap_err();
    assert!(matches!(&error, Error::Setup(reason) if reason.contains("app.toml")), "{error:?}");
}

/// A client whose endpoint nothing listens on.
fn nobody() -> Client {
    let endpoint = format!("127.0.0.1:{}", free_port());
    Client::builder([endpoint]).timeout(Duration::from_millis(300)).build().expect("a client")
}

#[tokio::test]
async fn a_start_without_the_cluster_is_up_to_the_policy() {
    let test = "a_start_without_the_cluster_is_up_to_the_policy";
    let Some(program) = program(test) else { return };
    let dir = TempDir::new().unwrap();
    let cache = dir.path().join("cache");
    let build = |client: &Client, boot| {
        let builder = client.config::<App>().defaults(json!({"port": 1}));
        builder.app(Source::document("c").codec(Codec::Toml)).cache(&cache).boot(boot)
    };
    let alone = nobody();
    let error = build(&alone, Boot::FailFast).start().await.unwrap_err();
    assert!(matches!(error, Error::Cluster(_)), "{error:?}");
    let error = build(&alone, Boot::UseCache).start().await.unwrap_err();
    assert!(matches!(error, Error::NoCache { .. }), "{error:?}");
    let config = build(&alone, Boot::UseDefaults).start().await.unwrap();
    assert_eq!((config.current().port, config.status().borrow().basis), (1, Basis::Local));

    let mut server = Server::single(program);
    let client = Client::builder([server.endpoint()]).timeout(SOON).build().unwrap();
    client.ready().await.unwrap();
    client.put("c", "port = 2").await.unwrap();
    let config = build(&client, Boot::FailFast).start().await.unwrap();
    assert_eq!((config.current().port, config.status().borrow().basis), (2, Basis::Cluster));
    client.put("c", "port = 3").await.unwrap();
    until(&config, "the change", |app| app.port == 3).await;
    eventually("the change in the cache", async || {
        let config = build(&alone, Boot::UseDefaults).start().await.unwrap();
        (config.current().port == 3).then_some(())
    })
    .await;
    drop(config);

    // Bad settings in the cluster do not prevent a start, either.
    client.put("c", "port = 'many'").await.unwrap();
    let config = build(&client, Boot::UseCache).start().await.unwrap();
    assert_eq!((config.current().port, config.status().borrow().basis), (3, Basis::Cache));
    assert_eq!(config.status().borrow().rejection.as_ref().unwrap().path, "port");
    drop(config);

    server.kill();
    let impatient = client.with_timeout(Duration::from_millis(300));
    let config = build(&impatient, Boot::UseCache).start().await.unwrap();
    assert_eq!((config.current().port, config.status().borrow().basis), (3, Basis::Cache));
    assert!(!config.status().borrow().is_connected);
    let old = build(&impatient, Boot::UseCache).max_staleness(Duration::from_nanos(1));
    let error = old.start().await.unwrap_err();
    assert!(error.to_string().contains("too old"), "{error}");
    server.start();
    client.ready().await.unwrap();
    client.put("c", "port = 4").await.unwrap();
    until(&config, "the cluster is back", |app| app.port == 4).await;
    assert_eq!(config.status().borrow().basis, Basis::Cluster);
}

#[tokio::test]
async fn nothing_is_left_of_a_dropped_configuration() {
    let Some((_server, client)) = start("nothing_is_left_of_a_dropped_configuration").await else {
        return;
    };
    client.put("c/port", "1").await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for _ in 0..100 {
        let config = client.config::<App>().app(Source::prefix("c/")).start().await.unwrap();
        let clone = config.clone();
        let mut changes = clone.on_change("port");
        drop((config, clone));
        assert_eq!(changes.next().await, None);
    }
    eventually("the tasks have ended", async || (tasks() <= before).then_some(())).await;
}

/// `revision: key=value key=-` for each change, newest first.
async fn history(client: &Client, key: &str) -> Vec<String> {
    let releases = client.history(key).prefix().await.expect("a history");
    let change = |event: &Event| {
        let kv = event.kv.as_ref().expect("a pair");
        let (key, value) = (String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
        let is_delete = event.r#type() == EventType::Delete;
        format!(" {key}={}", if is_delete { "-" } else { &value })
    };
    let line = |release: &Release| {
        let changes: String = release.changes.iter().map(change).collect();
        format!("{}{}:{changes}", release.revision, if release.is_compacted { "+" } else { "" })
    };
    releases.iter().map(line).collect()
}

#[tokio::test]
async fn the_past_can_be_seen_and_restored() {
    let Some((_server, client)) = start("the_past_can_be_seen_and_restored").await else { return };
    assert!(history(&client, "c/").await.is_empty());
    client.txn().then(put("c/a", "1")).then(put("c/b", "1")).commit().await.unwrap();
    client.put("other", "x").await.unwrap();
    client.put("c/a", "2").await.unwrap();
    client.delete("c/b").await.unwrap();
    client.txn().then(put("c/a", "3")).then(put("c/d", "3")).commit().await.unwrap();
    client.delete("c/d").await.unwrap();
    let all = ["7: c/d=-", "6: c/a=3 c/d=3", "5: c/b=-", "4: c/a=2", "2: c/a=1 c/b=1"];
    assert_eq!(history(&client, "c/").await, all);
    let newest = client.history("c/a").limit(1).await.unwrap();
    assert_eq!(newest.iter().map(|release| release.revision).collect::<Vec<_>>(), [6]);

    let done = client.rollback("c/", 2).prefix().await.unwrap();
    assert_eq!(done, RolledBack { revision: 8, changed: 2 });
    assert_eq!(history(&client, "c/").await[0], "8: c/a=1 c/b=1");
    let again = client.rollback("c/", 2).prefix().await.unwrap();
    assert_eq!(again, RolledBack { revision: 8, changed: 0 });
    let done = client.rollback("c/", 6).prefix().await.unwrap();
    assert_eq!((done.revision, done.changed), (9, 3));
    assert_eq!(history(&client, "c/").await[0], "9: c/b=- c/a=3 c/d=3");

    client.compact(8).await.unwrap();
    assert_eq!(history(&client, "c/").await, ["9: c/b=- c/a=3 c/d=3", "8+: c/a=1 c/b=1"]);
    let error = client.rollback("c/", 6).prefix().await.unwrap_err();
    assert!(matches!(error, Error::Cluster(conclave_client::Error::Compacted { .. })), "{error:?}");
}
