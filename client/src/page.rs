//! HTTP pages of a member, read over the connection for calls.

use std::{future::poll_fn, pin::Pin};

use http::Request;
use http_body::Body as _;
use tonic::{Response, Status, body::Body};
use tower::Service as _;

use crate::login::Channel;

/// Far larger than the metrics of any member.
const PAGE_BYTES_MAX: usize = 16 << 20;

/// Reads the page at `path`.
///
/// # Errors
/// If the server cannot be reached, has no such page, or sends more than [`PAGE_BYTES_MAX`].
pub(crate) async fn read(
    mut channel: Channel,
    path: &'static str,
) -> Result<Response<String>, Status> {
    let request = Request::get(path).body(Body::empty());
    let request = request.map_err(|error| Status::internal(error.to_string()))?;
    let failed = |error| Status::from_error(Box::new(error));
    poll_fn(|context| channel.poll_ready(context)).await.map_err(failed)?;
    let answer = channel.call(request).await.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(Status::unknown(format!("{path}: {}", answer.status())));
    }
    let mut body = answer.into_body();
    let mut page = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(bytes) = frame?.into_data() else { continue };
        page.extend_from_slice(&bytes);
        if page.len() > PAGE_BYTES_MAX {
            return Err(Status::out_of_range(format!("{path} has no end")));
        }
    }
    Ok(Response::new(String::from_utf8_lossy(&page).into_owned()))
}
