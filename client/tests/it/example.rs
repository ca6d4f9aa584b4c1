//! The examples do what their documentation says.

use crate::start;

#[path = "../../examples/config_subscriber.rs"]
mod config_subscriber;

#[tokio::test]
async fn a_config_subscriber_follows_its_settings() {
    let Some((server, _)) = start("a_config_subscriber_follows_its_settings").await else { return };
    let mut out = Vec::new();
    config_subscriber::run(&server.endpoint(), &mut out).await.expect("it runs to its end");
    let text = String::from_utf8(out).expect("text");
    let expected = "\
started: 4 workers, Database { host: \"db.internal\", password: (secret) }
the program itself sees the password, of 7 letters
database.host = \"db.internal\"
  shared shared/database.yaml at revision 2: \"db.internal\"
changed: Some(Number(4)) -> Some(Number(8)) workers
good day from db2.internal
refused: 500 workers are not between 1 and 64; still 8 workers
rolled back: 8 workers
";
    assert_eq!(text, expected);
}
