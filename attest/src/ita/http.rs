//! HTTP requests with a cap on the response. The caller enforces a deadline over all requests.

use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder};

use super::{ItaError, Options};

pub(super) fn client(options: &Options) -> Result<Client, ItaError> {
    let client = Client::builder()
        .connect_timeout(options.connect_timeout)
        .timeout(options.deadline)
        // A token is valid for minutes: a pooled connection would be idle.
        .pool_max_idle_per_host(0)
        .redirect(Policy::none())
        .referer(false)
        .no_proxy()
        .user_agent(concat!("teesql/", env!("CARGO_PKG_VERSION")))
        .build();
    client.map_err(|error| ItaError::Client(error.without_url().to_string()))
}

/// Sends a request. Gives the body of a response with status 200 and at most `limit` bytes.
pub(super) async fn read(request: RequestBuilder, limit: usize) -> Result<Vec<u8>, ItaError> {
    let sent = request.send().await;
    let mut response = sent.map_err(|error| classify(&error, ItaError::Unreachable))?;
    match response.status().as_u16() {
        200 => {}
        401 => return Err(ItaError::Unauthorized),
        other => return Err(ItaError::Status(other)),
    }
    let declared = response.content_length().unwrap_or_default();
    if usize::try_from(declared).map_or(true, |declared| declared > limit) {
        return Err(ItaError::TooLarge { limit });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| classify(&error, ItaError::Truncated))?
    {
        if body.len() + chunk.len() > limit {
            return Err(ItaError::TooLarge { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Maps time-outs of any layer to [`ItaError::Timeout`], and every other error to `otherwise`.
fn classify(error: &reqwest::Error, otherwise: ItaError) -> ItaError {
    match error.is_timeout() {
        true => ItaError::Timeout,
        false => otherwise,
    }
}
