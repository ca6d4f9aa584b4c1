//! Publishes changes through several channels at once. A task woken by one channel may read
//! another, so all new values are stored before any task is woken.

use tokio::sync::watch;

/// Stores a value in a channel without waking its receivers.
pub(crate) fn store<V>(channel: &watch::Sender<V>, value: V) {
    channel.send_if_modified(|held| {
        *held = value;
        false
    });
}

/// Like [`store`]; true if the value has changed.
pub(crate) fn store_news<V: PartialEq>(channel: &watch::Sender<V>, value: V) -> bool {
    let mut is_news = false;
    channel.send_if_modified(|held| {
        is_news = *held != value;
        *held = value;
        false
    });
    is_news
}

/// Wakes the receivers of a channel.
pub(crate) fn tell<V>(channel: &watch::Sender<V>) {
    channel.send_modify(|_held| ());
}
