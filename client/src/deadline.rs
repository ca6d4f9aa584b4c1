//! Tells servers the deadline of a call: `grpc-timeout` in whole milliseconds.

use std::{error::Error as _, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Code, Status, TimeoutExpired};

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The largest value that the header can hold (eight digits). Longer timeouts are not sent.
const MS_MAX: u128 = 99_999_999;

/// Sends the remaining time to the server. Rounded up to whole milliseconds, so that the server
/// does not give up before the caller does, and so that most calls send the same value, which
/// HTTP/2 then compresses to one byte.
pub(crate) fn tell(headers: &mut HeaderMap, left: Duration) {
    let ms = left.as_nanos().div_ceil(1_000_000).max(1);
    if ms <= MS_MAX
        && let Ok(value) = HeaderValue::try_from(format!("{ms}m"))
    {
        headers.insert(TIMEOUT, value);
    }
}

/// Whether a call ended because its time was over, as reported by the server or by the local
/// connection, which reads the header, too.
pub(crate) fn is_over(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    status.code() == Code::DeadlineExceeded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(left: Duration) -> Option<String> {
        let mut headers = HeaderMap::new();
        tell(&mut headers, left);
        headers.get(TIMEOUT).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn what_is_left_is_told_in_at_most_eight_digits() {
        assert_eq!(told(Duration::from_secs(5)).as_deref(), Some("5000m"));
        assert_eq!(told(Duration::from_micros(4_999_001)).as_deref(), Some("5000m"));
        assert_eq!(told(Duration::ZERO).as_deref(), Some("1m"), "it is to be a time");
        assert_eq!(told(Duration::from_millis(99_999_999)).as_deref(), Some("99999999m"));
        assert_eq!(told(Duration::from_millis(100_000_000)), None);
        assert_eq!(told(Duration::MAX), None);
    }

    #[test]
    fn whoever_notices_that_the_time_is_over_is_believed() {
        assert!(is_over(&Status::deadline_exceeded("context deadline exceeded")));
        assert!(is_over(&Status::from_error(Box::new(TimeoutExpired(())))));
        assert!(!is_over(&Status::unavailable("etcdserver: request timed out")));
    }
}
