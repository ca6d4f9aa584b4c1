//! Telling through several channels at once: whoever is woken by one of them may look at another, so all that is
//! new is stored before anybody is told.

use tokio::sync::watch;

/// Changes what a channel holds, and tells nobody yet.
pub(crate) fn store<V>(channel: &watch::Sender<V>, value: V) {
    channel.send_if_modified(|held| {
        *held = value;
        false
    });
}

/// As [`store`]; says whether that is news.
pub(crate) fn store_news<V: PartialEq>(channel: &watch::Sender<V>, value: V) -> bool {
    let mut is_news = false;
    channel.send_if_modified(|held| {
        is_news = *held != value;
        *held = value;
        false
    });
    is_news
}

/// Tells that a channel holds something else.
pub(crate) fn tell<V>(channel: &watch::Sender<V>) {
    channel.send_modify(|_held| ());
}
